"""Prints, as one line of JSON, a model folder that two servers load to the very same numbers.

``serve_comparison.py`` runs it. Without a GPU pippin widens weights to float32 when it loads them,
and a server that does not would be measured on other arithmetic. So the weights are widened here,
once, by pippin's own loader, and written down as a folder in mlx-lm's format. It lies in pippin's
cache folder; deleting it is safe. With a GPU the folder is the model's own.

The line also tells which BLAS library pippin has preloaded and with how many threads, for the
other server to have the same.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import sys
from pathlib import Path

from pippin.core.backend import blas_name, device_kind
from pippin.core.errors import PippinError
from pippin.core.folders import cache_folder
from pippin.core.models.cache_folder import publish_folder
from pippin.core.models.loader import LoadedModel, load_model
from pippin.core.models.progress import NullProgress

_FORMAT_VERSION = 2


def served_folder(loaded: LoadedModel) -> Path:
    """The folder to serve: widened to float32 on the CPU, else the model's own."""
    if device_kind() != "cpu":
        return loaded.path
    name = f"{loaded.path.name}-float32-{loaded.fingerprint[:12]}-v{_FORMAT_VERSION}"
    return publish_folder(cache_folder() / "perf" / name, lambda folder: _write(loaded, folder))


def _write(loaded: LoadedModel, folder: Path) -> None:
    for path in loaded.path.iterdir():
        # Tokenizer, template, generation settings; the index names files that will not be there.
        if path.is_file() and path.suffix not in (".safetensors", ".gguf"):
            shutil.copy(path, folder / path.name)
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    quantised = ("quantization", "quantization_config")
    config = {key: value for key, value in loaded.config.items() if key not in quantised}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    loaded.model.save_weights(str(folder / "model.safetensors"))


def preloaded_blas() -> tuple[str | None, int | None]:
    """Path and number of threads of the OpenBLAS in this process; nothing if there is none."""
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:  # no such thing on macOS, where it is not needed
        return None, None
    # numpy brings one of its own, under names that mlx does not call.
    paths = {line.split(maxsplit=5)[-1] for line in mapped.splitlines() if "openblas" in line}
    for path in sorted(paths):
        library = ctypes.CDLL(path)
        if hasattr(library, "cblas_sgemm") and hasattr(library, "openblas_get_num_threads"):
            return path, int(library.openblas_get_num_threads())
    return None, None


def main() -> None:
    """Make the folder and print the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="'demo', a folder, a .gguf file or a hub id")
    try:
        loaded = load_model(parser.parse_args().model, progress=NullProgress())
    except PippinError as error:
        sys.exit(str(error))
    library, num_threads = preloaded_blas()
    found = {
        "folder": str(served_folder(loaded)),
        "dtype": loaded.dtype,
        "device": device_kind(),
        "blas": blas_name(),
        "blas_library": library,
        "blas_threads": num_threads,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
