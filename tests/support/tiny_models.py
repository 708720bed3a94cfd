"""Tiny random models of many mlx-lm families, built in memory: nothing downloads.

Two to four layers, some dozens of dims, float32, fixed weights. Windows are short, so that short
prompts cross them. The weights are wide enough for attention to be picky and for greedy answers
to wander: a model that repeats one token with a large margin would hide every fault.
"""

from __future__ import annotations

import importlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from byte_tokenizer import make_byte_tokenizer

from pippin.core.backend import mx
from pippin.core.models.loader import LoadedModel

VOCAB_SIZE = 272
EOS_ID = 268  # the byte tokenizer's last token
_LLAMA = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class TinyFamily:
    """How to build one family's tiny model.

    Attributes:
        module: Of ``mlx_lm.models``.
        problem: Part of the reason why it runs on mlx-lm's own cache; ``None`` if it is paged.
        layers: What `KVLayout.describe` must say.
        gain: Width of the weights, times the root of what they sum over.
        embedding: Width of the embedding; a wide one makes the model repeat itself.
    """

    name: str
    module: str
    settings: Mapping[str, Any] = field(hash=False)
    layers: str = "3 full"
    problem: str | None = None
    gain: float = 1.6
    embedding: float = 0.25


_ALTERNATE = ["sliding_attention", "full_attention", "sliding_attention"]

FAMILIES = (
    TinyFamily("llama-tied", "llama", {**_LLAMA, "tie_word_embeddings": True}),
    TinyFamily(
        "llama-untied",
        "llama",
        {**_LLAMA, "tie_word_embeddings": False, "head_dim": 24, "num_key_value_heads": 1},
    ),
    TinyFamily("qwen2", "qwen2", {**_LLAMA, "num_key_value_heads": 4}),
    TinyFamily(
        "qwen3",
        "qwen3",
        {**_LLAMA, "head_dim": 32, "tie_word_embeddings": True, "rope_theta": 1e6},
    ),
    TinyFamily(
        "qwen3-moe",
        "qwen3_moe",
        {
            **_LLAMA,
            "head_dim": 16,
            "tie_word_embeddings": False,
            "rope_theta": 1e6,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [1],
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
    ),
    TinyFamily(
        "gemma3",
        "gemma3_text",
        {
            **_LLAMA,
            "num_hidden_layers": 4,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 24,
            "sliding_window_pattern": 2,
        },
        layers="2 sliding(24), 2 full",
    ),
    TinyFamily(
        "gpt-oss",
        "gpt_oss",
        {
            "num_hidden_layers": 4,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "hidden_size": 64,
            "intermediate_size": 64,
            "head_dim": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "sliding_window": 20,
            "rope_theta": 10000,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        layers="2 sliding(20), 2 full",
    ),
    TinyFamily(
        "cohere2",
        "cohere2",
        {
            "hidden_size": 64,
            "head_dim": 16,
            "num_hidden_layers": 4,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "logit_scale": 1.0,
            "sliding_window": 17,
            "sliding_window_pattern": 4,
        },
        layers="3 sliding(17), 1 full",
    ),
    TinyFamily(
        "olmo3",
        "olmo3",
        {**_LLAMA, "sliding_window": 16, "rope_theta": 10000.0, "layer_types": _ALTERNATE},
        layers="2 sliding(16), 1 full",
    ),
    TinyFamily(
        "ministral3",
        "ministral3",
        {
            **_LLAMA,
            "tie_word_embeddings": False,
            "sliding_window": 21,
            "layer_types": _ALTERNATE,
            "rope_parameters": {
                "rope_theta": 10000.0,
                "llama_4_scaling_beta": 0.1,
                "original_max_position_embeddings": 64,
            },
        },
        layers="2 sliding(21), 1 full",
    ),
    TinyFamily(
        "mimo-v2",  # keys and values of unlike dims, sinks, and heads that differ by layer kind
        "mimo_v2_flash",
        {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "hybrid_layer_pattern": [1, 0, 1],
            "moe_layer_freq": [0, 1, 0],
            "add_swa_attention_sink_bias": True,
            "add_full_attention_sink_bias": False,
            "sliding_window_size": 19,
            "intermediate_size": 96,
            "moe_intermediate_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "n_shared_experts": None,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "routed_scaling_factor": 1.0,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "n_group": 1,
            "topk_group": 1,
            "max_position_embeddings": 4096,
            "layernorm_epsilon": 1e-5,
            "rope_theta": 1e6,
            "swa_rope_theta": 1e4,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "head_dim": 24,
            "v_head_dim": 16,
            "swa_head_dim": 24,
            "swa_v_head_dim": 16,
            "partial_rotary_factor": 0.5,
        },
        layers="2 sliding(19), 1 full",
    ),
    TinyFamily(
        "gemma4",  # its last layers have no keys and values of their own
        "gemma4_text",
        {
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "global_head_dim": 32,
            "vocab_size_per_layer_input": VOCAB_SIZE,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 2,
            "sliding_window": 18,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        layers="1 sliding(18), 1 full",
        problem="share the keys and values",
    ),
    TinyFamily("phi3", "phi3", {**_LLAMA, "num_key_value_heads": 4}),
    TinyFamily(
        "phi",
        "phi",
        {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "partial_rotary_factor": 0.5,
        },
        gain=2.2,
    ),
    TinyFamily(
        "gemma2",
        "gemma2",
        {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rms_norm_eps": 1e-6,
            "query_pre_attn_scalar": 16.0,
        },
        problem="computes on its attention mask",
        embedding=0.1,
    ),
    TinyFamily(
        "deepseek-mla",
        "deepseek_v3",
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "moe_intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "n_shared_experts": 1,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "qk_nope_head_dim": 16,
        },
        problem="computes on its attention mask",
    ),
    TinyFamily(
        "mamba2",
        "mamba2",
        {
            "num_heads": 8,
            "head_dim": 16,
            "hidden_size": 64,
            "intermediate_size": 128,
            "state_size": 16,
            "num_hidden_layers": 2,
            "layer_norm_epsilon": 1e-5,
            "conv_kernel": 4,
            "n_groups": 1,
            "use_bias": False,
            "use_conv_bias": True,
            "tie_word_embeddings": False,
            "time_step_limit": (0.0, 100.0),
            "time_step_rank": "auto",
        },
        layers="2 opaque",
        problem="more than keys and values",
    ),
    TinyFamily(
        "lfm2",
        "lfm2",
        {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "norm_eps": 1e-5,
            "conv_bias": False,
            "conv_L_cache": 3,
            "block_dim": 64,
            "block_multiple_of": 16,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": False,
            "block_ff_dim": 96,
            "layer_types": ["conv", "full_attention", "conv"],
        },
        layers="2 opaque, 1 full",
        problem="more than keys and values",
    ),
)
PAGED = tuple(family for family in FAMILIES if family.problem is None)
FALLBACK = tuple(family for family in FAMILIES if family.problem is not None)


def family_named(name: str) -> TinyFamily:
    """The family of that name."""
    return next(family for family in FAMILIES if family.name == name)


def make_tiny_model(family: TinyFamily | str, *, seed: int = 0) -> LoadedModel:
    """A fresh model with the byte tokenizer. Same family and seed, same weights."""
    if isinstance(family, str):
        family = family_named(family)
    code: Any = importlib.import_module(f"mlx_lm.models.{family.module}")
    settings = {"model_type": family.module, "vocab_size": VOCAB_SIZE, **family.settings}
    model = code.Model(code.ModelArgs(**settings))
    _fill(model, family, np.random.default_rng([seed, zlib.crc32(family.name.encode())]))
    arrays = [array for _, array in _flat(model.parameters())]
    return LoadedModel(
        model=model,
        tokenizer=make_byte_tokenizer(),
        model_id=f"tiny/{family.name}",
        path=Path("nowhere"),
        config=settings,
        model_type=family.module,
        default_sampling={},
        eos_token_ids=(EOS_ID,),
        vocab_size=VOCAB_SIZE,
        max_model_len=4096,
        num_parameters=sum(array.size for array in arrays),
        weight_bytes=sum(array.nbytes for array in arrays),
        dtype="float32",
        quantization=None,
        fingerprint=f"{zlib.crc32(f'{family.name}-{seed}'.encode()):032x}",
    )


def _fill(model: Any, family: TinyFamily, rng: np.random.Generator) -> None:
    """Give every weight a value of sensible width, in place."""
    filled = []
    for name, old in _flat(model.parameters()):
        shape = old.shape
        if name.endswith(("A_log", "dt_bias", ".D")):
            filled.append((name, old.astype(mx.float32)))  # the state must not run away
        elif len(shape) > 1:
            # Experts are [experts, out, in], convolutions [out, taps, in].
            fan_in = shape[-1] if "conv" not in name else np.prod(shape[1:])
            width = family.embedding if "embed_tokens" in name else family.gain / np.sqrt(fan_in)
            filled.append((name, mx.array(rng.normal(0, width, shape).astype(np.float32))))
        else:
            noise = rng.normal(0, 0.3, shape).astype(np.float32)
            filled.append((name, old.astype(mx.float32) + mx.array(noise)))
    model.load_weights(filled)
    mx.eval(model.parameters())


def _flat(tree: Any) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten  # noqa: TID251

    leaves: Any = tree_flatten(tree)
    return list(leaves)


def save_tiny_model(family: TinyFamily | str, folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny model as mlx-lm's files, to be loaded the way of all models."""
    loaded = make_tiny_model(family, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    loaded.model.save_weights(str(folder / "model.safetensors"))
    loaded.tokenizer.save_pretrained(folder)
    config = {**loaded.config, "eos_token_id": EOS_ID, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
