"""Any model that mlx-lm can load → a folder with other weights: fewer bits, or another dtype.

The arithmetic is mlx-lm's. What is ours: a GGUF file may come in, the folder appears complete or
not at all, nothing is overwritten, and all files but weights and settings are copied as they are.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend import mx
from ..errors import ConfigError, PippinError
from .aliases import read_aliases
from .cache_folder import models_folder, publish_folder
from .convert_options import ConvertOptions
from .gguf import check_convertible, write_model_folder
from .gguf_header import read_gguf_header
from .loader import load_lazily, local_folder
from .model_facts import quantization_name
from .progress import Progress
from .source import DEMO, ModelSource, SourceKind, resolve_source

# What must not be copied: it is written anew, or describes what has changed.
_REWRITTEN = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "source.json",
    ".*",
    "*.py",
)
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "README.md", "LICENSE*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A folder that was made.

    Attributes:
        bits_per_weight: Scales and biases included.
    """

    folder: Path
    num_bytes: int
    bits_per_weight: float


def convert_model(
    source: str,
    options: ConvertOptions,
    progress: Progress,
    *,
    output: str | None = None,
) -> Converted:
    """Fetch if need be, convert, and keep the result.

    Args:
        output: The path of the folder to make, or a name in pippin's cache folder; by default a
            name that is made of the source's.

    Raises:
        PippinError: The source cannot be loaded, or is quantised already; the folder exists; the
            disk is too small.
    """
    resolved = resolve_source(source)
    stem = resolved.model_id.rpartition("/")[2]
    target = _target(output or f"{stem}-{options.suffix}")
    bits_per_weight = 0.0

    def build(part: Path) -> None:
        nonlocal bits_per_weight
        with _source_folder(resolved, part, progress) as folder:
            model, config = load_lazily(folder, model_id=resolved.model_id)
            _check_quantization(source, config, options)
            try:
                bits_per_weight = _write(model, config, folder, part, options, progress)
            except (ValueError, RuntimeError) as error:  # mlx's and mlx-lm's, on what is impossible
                reason = " ".join(str(error).split())
                raise PippinError(f"{source} cannot be converted: {reason}") from error
        about = {"of": resolved.model_id, "conversion": options.suffix}
        (part / "source.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    def refuse() -> None:
        raise PippinError(f"another process makes {target} right now")

    publish_folder(target, build, on_wait=refuse)
    num_bytes = sum(path.stat().st_size for path in target.iterdir())
    return Converted(folder=target, num_bytes=num_bytes, bits_per_weight=bits_per_weight)


def _target(output: str) -> Path:
    if "/" in output:
        target = Path(output).expanduser()
    else:
        target = models_folder() / output
        if output.startswith(".") or output == DEMO or output in read_aliases():
            raise ConfigError(f"a model cannot be called '{output}', which means something else")
    if target.exists():
        raise PippinError(f"{target} exists already; choose another name with --output")
    return target


@contextlib.contextmanager
def _source_folder(source: ModelSource, part: Path, progress: Progress) -> Iterator[Path]:
    """The model to convert; out of a GGUF file only for as long as it is needed."""
    if source.kind is not SourceKind.GGUF:
        yield local_folder(source, progress)
        return
    assert source.path is not None
    header = read_gguf_header(source.path)
    check_convertible(header)
    # Inside the folder that is being built, whose remains the next try sweeps up if this one dies.
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=part) as scratch:
        progress.start("convert", f"reading {source.path.name}", total_bytes=header.num_bytes)
        write_model_folder(source.path, header, Path(scratch))
        progress.finish()
        yield Path(scratch)


def _check_quantization(source: str, config: Mapping[str, Any], options: ConvertOptions) -> None:
    name = quantization_name(config)
    if options.quantizes and name is not None:
        raise PippinError(
            f"{source} has {name} weights already: convert the original, or first make plain "
            "numbers of them with --dequantize"
        )
    if options.dequantize and name is None:
        raise PippinError(f"{source} has no quantised weights")


def _write(
    model: Any,
    config: dict[str, Any],
    source: Path,
    part: Path,
    options: ConvertOptions,
    progress: Progress,
) -> float:
    from mlx_lm.utils import compute_bits_per_weight, save_config

    # It tells on stdout what it does.
    with contextlib.redirect_stdout(io.StringIO()):
        model, config = _transform(model, config, options)
    count_bits: Any = compute_bits_per_weight
    bits_per_weight = float(count_bits(model))
    for pattern in _COPIED:
        for path in source.glob(pattern):
            if path.is_file() and not any(path.match(it) for it in _REWRITTEN):
                shutil.copyfile(path, part / path.name)
    keeps_vision = "vision_tower" in getattr(model, "model", {})
    _save_weights(model, part, progress)
    save_config(config, config_path=part / "config.json", keep_vision_config=keeps_vision)
    return bits_per_weight


def _save_weights(model: Any, part: Path, progress: Progress) -> None:
    """Work out and write one shard after another; no more than one is in memory."""
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm.utils import get_total_parameters, make_shards

    leaves: Any = tree_flatten(model.parameters())
    weights = dict(leaves)
    total = sum(array.nbytes for array in weights.values())
    free = shutil.disk_usage(part).free
    if total > free:
        raise PippinError(
            f"the converted model takes {total / 2**30:.1f} GiB, but {part.parent} has only "
            f"{free / 2**30:.1f} GiB left"
        )
    count: Any = get_total_parameters
    metadata = {"total_size": total, "total_parameters": count(model)}
    shards: list[dict[str, mx.array]] = make_shards(weights)
    # Whatever else holds an array would keep it in memory once it is worked out.
    nothing: Any = tree_map(lambda _: mx.array([]), model.parameters())
    model.update(nothing)
    del leaves, weights
    progress.start("convert", "converting", total_bytes=total)
    done, files = 0, dict[str, str]()
    for number in range(len(shards)):
        shard, shards[number] = shards[number], {}
        for array in shard.values():
            mx.eval(array)
            done += array.nbytes
            progress.update(done)
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        name = "model.safetensors" if len(shards) == 1 else name
        mx.save_safetensors(str(part / name), shard, metadata={"format": "mlx"})
        files |= dict.fromkeys(shard, name)
    index = {"metadata": metadata, "weight_map": dict(sorted(files.items()))}
    (part / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    progress.finish()


def _transform(
    model: Any, config: dict[str, Any], options: ConvertOptions
) -> tuple[Any, dict[str, Any]]:
    from mlx.utils import tree_map_with_path
    from mlx_lm.convert import mixed_quant_predicate_builder
    from mlx_lm.utils import dequantize_model, quantize_model

    if options.dtype is not None:
        dtype = getattr(mx, options.dtype)
        may_cast = getattr(model, "cast_predicate", lambda _: True)
        cast: Any = tree_map_with_path(
            lambda name, array: (
                array.astype(dtype)
                if may_cast(name) and mx.issubdtype(array.dtype, mx.floating)
                else array
            ),
            model.parameters(),
        )
        model.update(cast)
        config = {**config, "torch_dtype": options.dtype}
    if options.dequantize:
        for key in ("quantization", "quantization_config"):
            config.pop(key, None)
        return dequantize_model(model), config
    if not options.quantizes:
        return model, config
    predicate: Any = None
    if options.recipe is not None:
        # It names the bits of every layer; those below are what the settings say of all others.
        predicate = mixed_quant_predicate_builder(options.recipe, model, options.used_group_size)
    return quantize_model(
        model,
        config,
        options.used_group_size,
        options.used_bits,
        mode=options.used_mode,
        quant_predicate=predicate,
    )
