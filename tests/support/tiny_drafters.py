"""Tiny MTP heads for tiny models: random ones, and one that is always right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from engine_driver import AlwaysOn
from tiny_families import LLAMA, VOCAB_SIZE
from tiny_models import make_tiny_model

from pippin.core.backend import mx
from pippin.core.config import CacheConfig, EngineConfig, SchedulerConfig, Speculation
from pippin.core.engine.factory import BuiltEngine, build_engine
from pippin.core.models.loader import LoadedModel

_QWEN = {
    **LLAMA,
    "model_type": "qwen3_5_text",
    "vocab_size": VOCAB_SIZE,
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 3,
    "tie_word_embeddings": False,
    "mtp_num_hidden_layers": 1,
    "rope_parameters": {
        "type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
    },
}
_MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
_NEMOTRON = {
    **LLAMA,
    "model_type": "nemotron_h",
    "vocab_size": VOCAB_SIZE,
    "attention_bias": False,
    "head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "mamba_proj_bias": False,
    "ssm_state_size": 16,
    "conv_kernel": 4,
    "n_groups": 2,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "layer_norm_epsilon": 1e-5,
    "use_bias": False,
    "use_conv_bias": True,
    "hybrid_override_pattern": ["M", "*", "-", "M"],
    "mtp_hybrid_override_pattern": ["*", "E"],
    "num_nextn_predict_layers": 1,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
}
# By the tiny model that a head goes with: its type, and the settings of its text model.
DRAFTERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "qwen3.5": ("qwen3_5_mtp", _QWEN),
    "qwen3-next": ("qwen3_5_mtp", {**_QWEN, **_MOE}),
    "nemotron-h": ("nemotron_h_mtp", _NEMOTRON),
}


def drafter_config(name: str) -> dict[str, Any]:
    """What a drafter's config.json says."""
    kind, text = DRAFTERS[name]
    return {"model_type": kind, "text_config": dict(text), "block_size": 3}


def make_drafter(name: str, *, seed: int = 0) -> Any:
    """A random head for the tiny model of this name."""
    from mlx_vlm.utils import get_model_and_args

    config = drafter_config(name)
    code: Any
    code, _ = get_model_and_args(config)
    drafter = code.Model(code.ModelConfig.from_dict(config))
    rng = np.random.default_rng(seed)
    weights = []
    for path, array in _flat(drafter):
        shape = array.shape
        noise = rng.normal(0, 1.6 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.3, shape)
        weights.append((path, mx.array((noise + (len(shape) == 1)).astype(np.float32))))
    drafter.load_weights(weights)
    mx.eval(drafter.parameters())
    return drafter


def make_right_pair() -> tuple[LoadedModel, Any]:
    """A model that only looks at its newest token, and a head that does the same."""
    target, drafter = make_tiny_model("qwen3.5"), make_drafter("qwen3.5")
    for module in (target.model, drafter):
        module.load_weights(
            [
                (path, mx.zeros_like(array))
                for path, array in _flat(module)
                if path.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight"))
            ],
            strict=False,
        )
    dims = int(LLAMA["hidden_size"])
    drafter.fc.weight = mx.concatenate([mx.eye(dims), mx.zeros((dims, dims))], axis=1)
    drafter.pre_fc_norm_embedding.weight = mx.ones(dims)
    drafter.norm.weight = target.model.language_model.model.norm.weight
    return target, drafter


def build_with_head(
    target: LoadedModel, drafter: Any, *, num_tokens: int = 4096, max_num_seqs: int = 16
) -> BuiltEngine:
    """An engine that speculates whatever it costs."""
    built = build_engine(
        target,
        EngineConfig(
            speculation=Speculation.MTP,
            cache=CacheConfig(block_size=16, max_bytes=num_tokens * 2048),
            scheduler=SchedulerConfig(max_num_seqs=max_num_seqs, prefill_chunk=64),
        ),
        drafter=drafter,
    )
    assert built.engine._speculator is not None
    built.engine._speculator = AlwaysOn(built.engine._speculator._source, max_tokens=4)
    return built


def save_drafter(name: str, folder: Path, *, prefix: str = "") -> Path:
    """Write a head as mlx-vlm's files or, with a prefix, its tensors into a model's folder."""
    weights = {f"{prefix}{path}": array for path, array in _flat(make_drafter(name))}
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(
        str(folder / ("mtp.safetensors" if prefix else "model.safetensors")),
        weights,
        {"format": "mlx"},
    )
    if not prefix:
        (folder / "config.json").write_text(json.dumps(drafter_config(name)))
    return folder


def _flat(module: Any) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten  # noqa: TID251

    leaves: Any = tree_flatten(module.parameters())
    return list(leaves)
