"""What a model's folder says about ending and sampling: ``generation_config.json`` and friends."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidRequestError
from ..sampling_params import SamplingParams

_ADVISED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The content of ``generation_config.json``; empty if it is missing or not a JSON object.

    A broken one is no reason not to serve: it holds defaults only.
    """
    try:
        content = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def default_sampling(generation_config: Mapping[str, Any]) -> dict[str, float]:
    """Sampling values the model's makers advise, keyed by `SamplingParams` field.

    Values out of range, of a wrong type or null are left out. ``do_sample: false`` means greedy,
    whatever else stands there.

    Source: huggingface.co/docs/transformers, "GenerationConfig".
    """
    if generation_config.get("do_sample") is False:
        return {"temperature": 0.0}
    defaults: dict[str, float] = {}
    for name in _ADVISED:
        value = generation_config.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if name == "top_k" and value % 1 != 0:
            continue
        candidate: dict[str, Any] = {name: value}
        try:
            SamplingParams(**candidate)
        except InvalidRequestError:
            continue
        defaults[name] = int(value) if name == "top_k" else float(value)
    return defaults


def eos_ids(*sources: Any) -> tuple[int, ...]:
    """End-of-sequence ids from values that are each an id, a list of ids, or absent; sorted."""
    found: set[int] = set()
    for source in sources:
        items = source if isinstance(source, Iterable) and not isinstance(source, str) else [source]
        found |= {item for item in items if isinstance(item, int) and not isinstance(item, bool)}
    return tuple(sorted(found))
