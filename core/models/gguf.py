"""A ``.gguf`` file → a folder that mlx-lm loads, kept in the cache folder.

Nothing is quantised again: the blocks of Q4_0, Q4_1 and Q8_0 are MLX's affine groups of 32 in
another order of bytes, and mlx's own reader does that step.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ..backend import mx
from ..errors import ModelLoadError
from .cache_folder import models_folder, publish_folder
from .gguf_config import architecture_of, make_config, token_ids
from .gguf_header import GgufHeader, read_gguf_header
from .gguf_tokenizer import write_tokenizer
from .progress import Progress

# Part of the cached folder's name: raise it when a conversion comes out differently.
_CONVERTER_VERSION = 1
_GROUP_SIZE = 32
_QUANTISED = {"Q4_0", "Q4_1", "Q8_0"}
_READABLE = {"F32", "F16", *_QUANTISED}

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ROPE_FREQS = "rope_freqs.weight"


def convert_gguf(path: Path, progress: Progress) -> Path:
    """Return the folder of a converted GGUF file; convert it the first time.

    Raises:
        ModelLoadError: The file is damaged, or its architecture, tokenizer or a tensor type is
            one that cannot be converted; the message names it.
    """
    header = read_gguf_header(path)
    check_convertible(header)
    status = path.stat()
    key = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{_CONVERTER_VERSION}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    target = models_folder() / f"{path.stem}-{digest}"

    def build(folder: Path) -> None:
        progress.start("convert", f"converting {path.name}", total_bytes=header.num_bytes)
        write_model_folder(path, header, folder)
        progress.finish()

    return publish_folder(
        target, build, on_wait=lambda: progress.note(f"another process converts {path.name}")
    )


def check_convertible(header: GgufHeader) -> None:
    """Raises ModelLoadError, naming what stands in the way, before any tensor is read."""
    architecture_of(header)
    unreadable = sorted({kind for kind in header.tensor_types.values() if kind not in _READABLE})
    if unreadable:
        raise ModelLoadError(
            f"GGUF tensors of type {', '.join(unreadable)} cannot be read; "
            f"take a file with {', '.join(sorted(_READABLE))} only"
        )


def write_model_folder(path: Path, header: GgufHeader, folder: Path) -> None:
    """Fill `folder` with the model of a GGUF file that `check_convertible` has passed.

    Raises:
        ModelLoadError: A tensor is not one the architecture has, or the vocabulary is unknown.
    """
    # On the CPU whatever the device: no arithmetic happens, and a GPU's memory may be small.
    with mx.stream(mx.cpu):
        try:
            tensors = mx.load(str(path))
        except RuntimeError as error:
            raise ModelLoadError(f"{path.name} cannot be read: {error}") from error
        assert isinstance(tensors, dict)
        rope_freqs = tensors.pop(_ROPE_FREQS, None)
        weights = _rename_and_reorder(header, tensors)
        quantised = sorted(name[: -len(".scales")] for name in weights if name.endswith(".scales"))
        dtype = _compute_dtype(weights, quantised)
        weights = {
            name: array if array.dtype == mx.uint32 else array.astype(dtype)
            for name, array in weights.items()
        }
        mx.eval(weights)
        vocab_size = weights["model.embed_tokens.weight"].shape[0]
        config = make_config(
            header,
            vocab_size=vocab_size,
            tied="lm_head.weight" not in weights,
            rope_freqs=None if rope_freqs is None else _floats(rope_freqs),
        )
        config["torch_dtype"] = str(dtype).removeprefix("mlx.core.")
        if quantised:
            config["quantization"] = _quantization(weights, quantised)
        mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", token_ids(header))
    write_tokenizer(header, folder)


def _rename_and_reorder(header: GgufHeader, tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    prefix = header.architecture
    permuted = architecture_of(header).permuted
    num_heads = header.get(f"{prefix}.attention.head_count", int)
    num_kv_heads = header.get(f"{prefix}.attention.head_count_kv", int, num_heads)
    heads = {"attn_q": num_heads, "attn_k": num_kv_heads} if permuted else {}
    weights = {}
    for name, array in tensors.items():
        stem, _, part = name.rpartition(".")
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        if layer and layer[2] in _LAYER_NAMES:
            new_stem = f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}"
            if layer[2] in heads:
                array = restore_rotary_rows(array, heads[layer[2]])
        elif stem in _TOP_NAMES:
            new_stem = _TOP_NAMES[stem]
        else:
            raise ModelLoadError(f"GGUF tensor {name} has no place in a {prefix} model")
        weights[f"{new_stem}.{part}"] = array
    if "model.embed_tokens.weight" not in weights:
        raise ModelLoadError("the GGUF file holds no token embedding")
    return weights


def restore_rotary_rows(array: mx.array, num_heads: int) -> mx.array:
    """Put the rows of a query or key projection back into the order of half-split rotation.

    A llama GGUF keeps each head's rows as (first of half one, first of half two, second of half
    one, ...). Quantised groups run along columns, so packed words, scales and biases take the same
    treatment as plain weights.

    Args:
        array: ``[num_heads * head_dim, ...]``.
        num_heads: Of queries or of keys, whichever `array` makes.
    """
    rows = array.shape[0]
    pairs = array.reshape(num_heads, rows // num_heads // 2, 2, -1)  # [heads, pair, half, columns]
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _compute_dtype(weights: dict[str, mx.array], quantised: list[str]) -> mx.Dtype:
    # Norms are float32 in every file. Kept so, they would drag all activations to float32.
    if quantised:
        return weights[f"{quantised[0]}.scales"].dtype
    return weights["model.embed_tokens.weight"].dtype


def _quantization(weights: dict[str, mx.array], quantised: list[str]) -> dict[str, Any]:
    bits = {
        name: weights[f"{name}.weight"].shape[-1]
        * 32
        // (weights[f"{name}.scales"].shape[-1] * _GROUP_SIZE)
        for name in quantised
    }
    usual = Counter(bits.values()).most_common(1)[0][0]
    entry: dict[str, Any] = {"group_size": _GROUP_SIZE, "bits": usual, "mode": "affine"}
    for name, value in bits.items():
        if value != usual:
            entry[name] = {"group_size": _GROUP_SIZE, "bits": value}
    return entry


def _floats(array: mx.array) -> list[float]:
    return list(memoryview(array.astype(mx.float32)))  # type: ignore[arg-type]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
