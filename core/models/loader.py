"""A model argument → a model and a tokenizer, ready on this machine's device.

Model code, weights and tokenizer are mlx-lm's business; this file is the only one that calls its
loading functions. What is ours: fetching, saying in one line what is wrong, and float32 on the
CPU, where 16-bit and quantised products run ten to forty times slower than float32 ones.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend import device_kind, mx
from ..errors import ModelLoadError, PippinError
from .demo import fetch_demo
from .download import download_model
from .fingerprint import fingerprint_model
from .generation_defaults import default_sampling, eos_ids, read_generation_config
from .gguf import convert_gguf
from .model_folder import (
    check_tokenizer_files,
    context_length,
    find_weight_files,
    read_config,
    text_setting,
)
from .progress import Progress
from .source import ModelSource, SourceKind, resolve_source

logger = logging.getLogger(__name__)

# Metal keeps freed buffers for reuse, without bound unless told. A step's temporaries are far
# smaller than this; what is above is better left to the KV cache and to other programs.
_BUFFER_CACHE_BYTES = 1 << 30
_MAX_REASON_CHARS = 300

# By which harmony turns end.
_HARMONY_ENDS = {"<|call|>", "<|return|>"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that can run, and everything its folder says about it.

    Attributes:
        model: mlx-lm's ``nn.Module``. All its arrays are evaluated.
        tokenizer: The transformers tokenizer, unwrapped.
        model_id: The name to serve it under unless told otherwise.
        path: Its folder.
        config: Its ``config.json`` as mlx-lm understood it.
        default_sampling: Advised values, keyed by `SamplingParams` field.
        eos_token_ids: Ids that end an answer, sorted.
        vocab_size: Length of a row of logits.
        max_model_len: Most tokens it was made for; ``None`` if it does not say.
        weight_bytes: Memory the weights take now, in bytes.
        dtype: Of activations, such as ``float32``.
        quantization: Such as ``4-bit``; ``None`` if the weights are plain numbers.
        fingerprint: 32 hex digits that name these very weights in this dtype.
    """

    model: Any
    tokenizer: Any
    model_id: str
    path: Path
    config: dict[str, Any]
    model_type: str
    default_sampling: dict[str, float]
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    max_model_len: int | None
    num_parameters: int
    weight_bytes: int
    dtype: str
    quantization: str | None
    fingerprint: str


def load_model(source: str, *, progress: Progress) -> LoadedModel:
    """Fetch if need be, and load. To be called on the thread that will run the model.

    Args:
        source: ``demo``, a folder, a ``.gguf`` file, or a hub id.
        progress: Hears of stages and of fallbacks taken.

    Raises:
        DownloadError: It could not be fetched.
        ModelLoadError: It is there but cannot be used.
    """
    resolved = resolve_source(source)
    folder = local_folder(resolved, progress)
    return load_folder(folder, model_id=resolved.model_id, progress=progress)


def local_folder(source: ModelSource, progress: Progress) -> Path:
    """The folder of a model, fetched or converted if need be.

    Raises:
        DownloadError: It could not be fetched.
        ModelLoadError: A GGUF file cannot be converted.
    """
    if source.kind is SourceKind.DEMO:
        return fetch_demo(progress)
    if source.kind is SourceKind.HUB:
        return download_model(source.model_id, progress)
    assert source.path is not None
    return convert_gguf(source.path, progress) if source.kind is SourceKind.GGUF else source.path


def load_folder(folder: Path, *, model_id: str, progress: Progress) -> LoadedModel:
    """Load a folder in mlx-lm's format.

    Raises:
        ModelLoadError: The folder is incomplete, the model type is unknown, or it does not fit
            into memory.
    """
    read_config(folder)
    weight_files = find_weight_files(folder)
    check_tokenizer_files(folder)
    if device_kind() == "metal":
        mx.set_cache_limit(_BUFFER_CACHE_BYTES)
    file_bytes = sum(path.stat().st_size for path in weight_files)
    progress.start("load", f"loading {model_id}", total_bytes=file_bytes)
    try:
        model, config = load_lazily(folder, model_id=model_id)
        quantization = _quantization_name(config)
        if device_kind() == "cpu" and _widen(model):
            quantization = None
            progress.note("no GPU: weights run as float32, the CPU's fastest format")
        _evaluate(model, progress)
        tokenizer, found_eos_ids = _load_tokenizer(folder, config)
    except PippinError:
        raise
    # Foreign code on foreign files raises anything from KeyError to RuntimeError.
    except Exception as error:
        raise ModelLoadError(f"{model_id} cannot be loaded: {_one_line(error)}") from error
    generation_config = read_generation_config(folder)
    dtype = _activation_dtype(model)
    progress.finish()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        model_id=model_id,
        path=folder,
        config=config,
        model_type=str(config["model_type"]),
        default_sampling=default_sampling(generation_config),
        eos_token_ids=eos_ids(
            found_eos_ids, config.get("eos_token_id"), generation_config.get("eos_token_id")
        ),
        vocab_size=int(text_setting(config, "vocab_size") or len(tokenizer)),
        max_model_len=context_length(config),
        num_parameters=_num_parameters(model),
        weight_bytes=sum(array.nbytes for array in _arrays(model)),
        dtype=dtype,
        quantization=quantization,
        fingerprint=_fingerprint(folder, weight_files, dtype),
    )


def load_lazily(folder: Path, *, model_id: str) -> tuple[Any, dict[str, Any]]:
    """mlx-lm's model and the settings as it understood them; no weight is read yet.

    Raises:
        ModelLoadError: The folder is incomplete, mlx-lm does not know the model type, or not with
            these weights.
    """
    read_config(folder)
    find_weight_files(folder)
    check_tokenizer_files(folder)
    # Half a second of imports, through transformers; nothing before this line needs them.
    from mlx_lm.utils import load_model as load_mlx_lm_model

    try:
        return load_mlx_lm_model(folder, lazy=True)
    # Foreign code on foreign files raises anything from KeyError to RuntimeError.
    except Exception as error:
        if not isinstance(error, ValueError) or "not supported" not in str(error):
            raise ModelLoadError(f"{model_id} cannot be loaded: {_one_line(error)}") from error
        config = read_config(folder)
        kind = "vision model type" if "vision_config" in config else "model type"
        raise ModelLoadError(
            f"{kind} '{config['model_type']}' is not one that mlx-lm can run as a text model"
        ) from error


def prepare_weights(model: Any, progress: Progress) -> None:
    """Evaluate weights that were loaded lazily, on a CPU as float32."""
    if device_kind() == "cpu":
        _widen(model)
    _evaluate(model, progress)


def _load_tokenizer(folder: Path, config: dict[str, Any]) -> tuple[Any, set[int]]:
    from mlx_lm.utils import load_tokenizer

    load: Any = load_tokenizer
    # Said explicitly, because transformers would otherwise ask on the terminal.
    wrapper = load(folder, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id"))
    tokenizer = wrapper._tokenizer
    return tokenizer, set(wrapper.eos_token_ids) | _harmony_ends(tokenizer.get_vocab())


def _harmony_ends(vocab: Mapping[str, int]) -> set[int]:
    """Tokens that end a turn in harmony; some conversions name only one of them."""
    if not _HARMONY_ENDS | {"<|channel|>"} <= vocab.keys():
        return set()
    return {vocab[token] for token in _HARMONY_ENDS}


def _widen(model: Any) -> bool:
    """Make every weight float32, without evaluating any; say whether that changes something.

    Scales and offsets are widened first, so that a dequantised weight is ``scale * q + offset`` in
    float32, rounded nowhere on the way.
    """
    from mlx_lm.utils import dequantize_model

    arrays = _arrays(model)
    if all(array.dtype == mx.float32 for array in arrays):
        return False
    if any("global_scale" in module for _, module in model.named_modules()):
        raise ModelLoadError("weights quantised with a global scale need a GPU")
    needed = 4 * _num_parameters(model)
    available = _memory_bytes()
    if needed > available:
        raise ModelLoadError(
            f"on the CPU this model takes {needed / 2**30:.1f} GiB as float32, "
            f"but the machine has {available / 2**30:.1f} GiB"
        )
    _cast_to_float32(model)
    dequantize_model(model)
    # Formats without offsets come out of the line above as bfloat16, which holds them exactly.
    _cast_to_float32(model)
    return True


def _cast_to_float32(model: Any) -> None:
    model.apply(
        lambda array: array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
    )


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _evaluate(model: Any, progress: Progress) -> None:
    """Evaluate all arrays, those that are no weights (rotary frequencies) too.

    One by one: a widened model is then never in memory twice.
    """
    arrays = _arrays(model)
    total = sum(array.nbytes for array in arrays)
    done = 0
    for array in arrays:
        mx.eval(array)
        done += array.nbytes
        progress.update(done, total_bytes=total)


def _arrays(model: Any) -> list[mx.array]:
    from mlx.utils import tree_flatten

    leaves: Any = tree_flatten(model)
    return [leaf for _, leaf in leaves if isinstance(leaf, mx.array)]


def _num_parameters(model: Any) -> int:
    from mlx_lm.utils import get_total_parameters

    count: Any = get_total_parameters
    return int(count(model))


def _activation_dtype(model: Any) -> str:
    # A quantised layer answers in the dtype of its scales, a plain one in that of its weight: the
    # first floating-point array of the embedding, in either case.
    for array in _arrays(model):
        if mx.issubdtype(array.dtype, mx.floating) and array.ndim > 1:
            return str(array.dtype).removeprefix("mlx.core.")
    return "float32"


def _quantization_name(config: dict[str, Any]) -> str | None:
    entry = config.get("quantization")
    if not isinstance(entry, dict) or "bits" not in entry:
        return None
    mode = entry.get("mode", "affine")
    return f"{entry['bits']}-bit" if mode == "affine" else f"{entry['bits']}-bit {mode}"


def _fingerprint(folder: Path, weight_files: list[Path], dtype: str) -> str:
    try:
        return fingerprint_model(read_config(folder), weight_files, compute_dtype=dtype)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{folder} cannot be read: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_REASON_CHARS else text[:_MAX_REASON_CHARS] + "..."
