"""Tiny random models of many mlx-lm families, built in memory: nothing downloads.

Two to four layers, some dozens of dims, float32, fixed weights. Windows are short, so that short
prompts cross them. The weights are wide enough for attention to be picky and for greedy answers
to wander: a model that repeats one token with a large margin would hide every fault.
"""

from __future__ import annotations

import importlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from byte_tokenizer import make_byte_tokenizer
from tiny_families import ATTENTION_FAMILIES, EOS_ID, VOCAB_SIZE, TinyFamily
from tiny_hybrids import HYBRID_FAMILIES
from tiny_unusual import UNUSUAL_FAMILIES

from pippin.core.backend import mx
from pippin.core.models.loader import LoadedModel

__all__ = ["EOS_ID", "FAMILIES", "VOCAB_SIZE", "TinyFamily", "make_tiny_model", "save_tiny_model"]

FAMILIES = (*ATTENTION_FAMILIES, *UNUSUAL_FAMILIES, *HYBRID_FAMILIES)
PAGED = tuple(family for family in FAMILIES if family.problem is None)
QUICK = tuple(family for family in PAGED if family.is_quick)
RARE = tuple(family for family in PAGED if not family.is_quick)
FALLBACK = tuple(family for family in FAMILIES if family.problem is not None)
RECURRENT = tuple(family for family in PAGED if "recurrent" in family.layers)


def family_named(name: str) -> TinyFamily:
    """The family of that name."""
    return next(family for family in FAMILIES if family.name == name)


def make_tiny_model(family: TinyFamily | str, *, seed: int = 0) -> LoadedModel:
    """A fresh model with the byte tokenizer. Same family and seed, same weights."""
    if isinstance(family, str):
        family = family_named(family)
    code: Any = importlib.import_module(f"mlx_lm.models.{family.module}")
    settings = {"model_type": family.module, "vocab_size": VOCAB_SIZE, **family.settings}
    mx.random.seed(seed)  # biases keep something of what they begin with
    model = code.Model(code.ModelArgs.from_dict(settings))
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
