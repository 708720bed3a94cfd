"""Settings of tiny models whose layers are attention, by family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pippin.core.runner.forward_batch import PassForm

VOCAB_SIZE = 272
EOS_ID = 268  # the byte tokenizer's last token
LLAMA = {
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
        form: What its code can be handed, if it is paged.
        layers: What `KVLayout.describe` must say.
        gain: Width of the weights, times the root of what they sum over.
        embedding: Width of the embedding; a wide one makes the model repeat itself.
        is_quick: Whether the default test run has it, not the exactness suite alone.
    """

    name: str
    module: str
    settings: Mapping[str, Any] = field(hash=False)
    layers: str = "3 full"
    problem: str | None = None
    form: PassForm = PassForm.FLAT
    gain: float = 1.6
    embedding: float = 0.25
    is_quick: bool = True


MLA = {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "qk_nope_head_dim": 16,
}
ROUTED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_ALTERNATE = ["sliding_attention", "full_attention", "sliding_attention"]

ATTENTION_FAMILIES = (
    TinyFamily("llama-tied", "llama", {**LLAMA, "tie_word_embeddings": True}),
    TinyFamily(
        "llama-untied",
        "llama",
        {**LLAMA, "tie_word_embeddings": False, "head_dim": 24, "num_key_value_heads": 1},
    ),
    TinyFamily("qwen2", "qwen2", {**LLAMA, "num_key_value_heads": 4}),
    TinyFamily(
        "qwen3",
        "qwen3",
        {**LLAMA, "head_dim": 32, "tie_word_embeddings": True, "rope_theta": 1e6},
    ),
    TinyFamily(
        "qwen3-moe",
        "qwen3_moe",
        {
            **LLAMA,
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
            **LLAMA,
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
        {**LLAMA, "sliding_window": 16, "rope_theta": 10000.0, "layer_types": _ALTERNATE},
        layers="2 sliding(16), 1 full",
    ),
    TinyFamily(
        "ministral3",
        "ministral3",
        {
            **LLAMA,
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
        form=PassForm.GATHERED,
    ),
    TinyFamily("phi3", "phi3", {**LLAMA, "num_key_value_heads": 4}),
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
        form=PassForm.ALONE,
        embedding=0.1,
    ),
    TinyFamily(
        "deepseek-mla",
        "deepseek_v3",
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            **ROUTED,
            **MLA,
        },
        form=PassForm.GATHERED,
    ),
)
