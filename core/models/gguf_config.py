"""GGUF metadata → the ``config.json`` and ``generation_config.json`` that mlx-lm reads.

Source: ggml-org/ggml, docs/gguf.md, "Standardized key-value pairs".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ModelLoadError
from .gguf_header import GgufHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufArchitecture:
    """How one ``general.architecture`` maps to a model of mlx-lm.

    Attributes:
        permuted: Whether the rows of the query and key projections are stored in the order of
            interleaved rotary embedding and have to be put back.
    """

    model_type: str
    class_name: str
    permuted: bool = False


# Mistral models call themselves llama in GGUF files.
ARCHITECTURES = {
    "llama": GgufArchitecture(model_type="llama", class_name="LlamaForCausalLM", permuted=True),
    "qwen2": GgufArchitecture(model_type="qwen2", class_name="Qwen2ForCausalLM"),
    "qwen3": GgufArchitecture(model_type="qwen3", class_name="Qwen3ForCausalLM"),
}

# Llama 3.1 and later stretch rotary embedding by wavelength. GGUF files hold the resulting divisor
# of every frequency, mlx-lm wants the recipe; these three numbers are the same in all of them.
# Source: Meta, Llama 3.1 model card and reference config ("rope_scaling").
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_ORIGINAL = 1.0, 4.0, 8192


def architecture_of(header: GgufHeader) -> GgufArchitecture:
    """Raises ModelLoadError if the file's architecture is not one of `ARCHITECTURES`."""
    name = header.architecture
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelLoadError(f"GGUF architecture '{name}' cannot be converted; known are {known}")
    if header.get(f"{name}.expert_count", int, 0):
        raise ModelLoadError(f"GGUF architecture '{name}' with experts cannot be converted")
    return ARCHITECTURES[name]


def make_config(
    header: GgufHeader, *, vocab_size: int, tied: bool, rope_freqs: Sequence[float] | None
) -> dict[str, Any]:
    """The settings of the model, without its quantisation.

    Args:
        header: Of a file whose architecture is in `ARCHITECTURES`.
        vocab_size: Rows of the embedding.
        tied: Whether the embedding is the output head, too.
        rope_freqs: Divisors of the rotary frequencies, ``[head_dim / 2]``, if the file has them.

    Raises:
        ModelLoadError: Metadata are missing, or ask for something mlx-lm's model cannot do.
    """
    prefix = header.architecture
    architecture = architecture_of(header)
    hidden = header.get(f"{prefix}.embedding_length", int)
    num_heads = header.get(f"{prefix}.attention.head_count", int)
    head_dim = header.get(f"{prefix}.attention.key_length", int, hidden // num_heads)
    context = header.get(f"{prefix}.context_length", int)
    rope_dim = header.get(f"{prefix}.rope.dimension_count", int, head_dim)
    if rope_dim != head_dim:
        raise ModelLoadError(f"rotary embedding over {rope_dim} of {head_dim} dimensions")
    theta = header.get(f"{prefix}.rope.freq_base", float, 10_000.0)
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "hidden_size": hidden,
        "intermediate_size": header.get(f"{prefix}.feed_forward_length", int),
        "num_hidden_layers": header.get(f"{prefix}.block_count", int),
        "num_attention_heads": num_heads,
        "num_key_value_heads": header.get(f"{prefix}.attention.head_count_kv", int, num_heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": any(name.endswith("attn_q.bias") for name in header.tensor_types),
        "mlp_bias": any(name.endswith("ffn_up.bias") for name in header.tensor_types),
        "max_position_embeddings": context,
        "rms_norm_eps": _shortest(
            header.get(f"{prefix}.attention.layer_norm_rms_epsilon", float, 1e-5)
        ),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(header, theta, head_dim, rope_freqs),
        "vocab_size": vocab_size,
        "tie_word_embeddings": tied,
        **token_ids(header),
    }


def token_ids(header: GgufHeader) -> dict[str, Any]:
    """Ids of the begin, end and padding tokens that the file names.

    ``eos_token_id`` is a list if a turn and a text end with different tokens.
    """
    ids: dict[str, Any] = {}
    for name, key in (("bos", "bos"), ("pad", "padding")):
        value = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(value, int):
            ids[f"{name}_token_id"] = value
    ends = [
        value
        for key in ("eos", "eot", "eom")
        if isinstance(value := header.metadata.get(f"tokenizer.ggml.{key}_token_id"), int)
    ]
    if ends:
        unique = list(dict.fromkeys(ends))
        ids["eos_token_id"] = unique[0] if len(unique) == 1 else unique
    return ids


def _shortest(value: float) -> float:
    # The file holds a float32: 1e-5 comes back as 9.999999747378752e-06.
    return float(f"{value:.6g}")


def _rope_scaling(
    header: GgufHeader, theta: float, head_dim: int, rope_freqs: Sequence[float] | None
) -> dict[str, Any] | None:
    if rope_freqs is not None:
        return _llama3_scaling(theta, head_dim, rope_freqs)
    prefix = f"{header.architecture}.rope.scaling"
    kind = header.get(f"{prefix}.type", str, "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ModelLoadError(f"rotary scaling '{kind}' cannot be converted")
    scaling: dict[str, Any] = {"type": kind, "factor": header.get(f"{prefix}.factor", float)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = header.get(
            f"{prefix}.original_context_length", int
        )
    return scaling


def _llama3_scaling(
    theta: float, head_dim: int, rope_freqs: Sequence[float]
) -> dict[str, Any] | None:
    factor = max(rope_freqs)
    if factor == 1.0:
        return None
    expected = []
    for index in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * index / head_dim)
        smooth = (_LLAMA3_ORIGINAL / wavelength - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
        smooth = min(1.0, max(0.0, smooth))
        expected.append(1.0 / ((1 - smooth) / factor + smooth))
    close = len(expected) == len(rope_freqs) and all(
        math.isclose(a, b, rel_tol=1e-3) for a, b in zip(expected, rope_freqs, strict=True)
    )
    if not close:
        raise ModelLoadError("rope_freqs of this file follow no known rule")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_ORIGINAL,
    }
