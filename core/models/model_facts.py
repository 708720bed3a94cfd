"""What a model's folder tells of it while no weight is read: settings and tensor headers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError
from .demo import demo_folder
from .model_folder import context_length, find_weight_files, read_config, text_setting
from .safetensors_header import TensorHeader, read_tensor_headers

_LICENCE = re.compile(r"^license:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
# Source: huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, model card, which its folder lacks.
_DEMO_LICENCE = "apache-2.0"
_WORD_BITS = 32
_EMBEDDING_FILES = ("modules.json", "1_Pooling", "sentence_bert_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model, as its files describe it.

    Attributes:
        quantization: Such as ``4-bit``; the weights' dtype where they are plain numbers.
        context: Most tokens it was made for; ``None`` if its settings do not say.
        modality: What it takes, such as ``text+image``; or ``embedding``.
        licence: As its card names it; ``None`` where that is not known.
    """

    model_type: str
    architecture: str | None
    quantization: str | None
    context: int | None
    modality: str
    licence: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFacts:
    """What is in the weight files.

    Attributes:
        bytes_by_dtype: Largest first.
        bits_per_weight: Scales and biases of quantised weights included.
    """

    num_files: int
    num_tensors: int
    num_parameters: int
    num_bytes: int
    bytes_by_dtype: dict[str, int] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        """Storage of a parameter."""
        return 8 * self.num_bytes / max(1, self.num_parameters)


def read_facts(folder: Path) -> ModelFacts:
    """What the settings tell.

    Raises:
        ModelLoadError: There are no settings, or they cannot be read.
    """
    config = read_config(folder)
    architectures = config.get("architectures")
    return ModelFacts(
        model_type=config["model_type"],
        architecture=str(architectures[0])
        if isinstance(architectures, list) and architectures
        else None,
        quantization=quantization_name(config) or _stored_dtype(config, folder),
        context=context_length(config),
        modality=_modality(config, folder),
        licence=read_licence(folder),
    )


def read_weight_facts(folder: Path) -> WeightFacts:
    """What the headers of the weight files tell.

    Raises:
        ModelLoadError: A file is missing, damaged or cut short.
    """
    files = find_weight_files(folder)
    tensors: dict[str, TensorHeader] = {}
    for path in files:
        tensors |= read_tensor_headers(path)
    by_dtype: Counter[str] = Counter()
    for tensor in tensors.values():
        by_dtype[tensor.dtype] += tensor.num_bytes
    return WeightFacts(
        num_files=len(files),
        num_tensors=len(tensors),
        num_parameters=_count_parameters(tensors, read_config(folder)),
        num_bytes=sum(by_dtype.values()),
        bytes_by_dtype=dict(by_dtype.most_common()),
    )


def quantization_name(config: Mapping[str, Any]) -> str | None:
    """Such as ``4-bit``, ``4-bit mxfp4`` or ``3/6-bit``; ``None`` if weights are plain numbers."""
    entry = _quantization(config)
    if entry is None:
        return None
    if "bits" not in entry:
        return str(entry.get("quant_method") or entry.get("quant_algo") or "quantised")
    own = [it["bits"] for it in entry.values() if isinstance(it, Mapping) and "bits" in it]
    bits = "/".join(map(str, sorted({entry["bits"], *own})))
    mode = entry.get("mode", entry.get("quant_method", "affine"))
    return f"{bits}-bit" if mode == "affine" else f"{bits}-bit {mode}"


def read_licence(folder: Path) -> str | None:
    """What the head of the model's card names, in lower case.

    Source: huggingface.co/docs/hub, "Model Cards", on metadata in YAML.
    """
    if folder == demo_folder():
        return _DEMO_LICENCE
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    head = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
    match = _LICENCE.search(head)
    return match[1].strip("'\"").lower() if match else None


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for key in ("quantization", "quantization_config"):
        entry = text_setting(config, key)
        if isinstance(entry, Mapping):
            return entry
    return None


def _stored_dtype(config: Mapping[str, Any], folder: Path) -> str | None:
    for key in ("torch_dtype", "dtype"):
        value = text_setting(config, key)
        if isinstance(value, str):
            return value
    try:
        tensors = read_tensor_headers(find_weight_files(folder)[0])
    except ModelLoadError:
        return None
    return max(tensors.values(), key=lambda it: it.num_bytes).dtype if tensors else None


def _modality(config: Mapping[str, Any], folder: Path) -> str:
    if any((folder / name).exists() for name in _EMBEDDING_FILES):
        return "embedding"
    senses = (("image", "vision_config"), ("audio", "audio_config"), ("video", "video_config"))
    return "+".join(["text", *(sense for sense, key in senses if config.get(key))])


def _count_parameters(tensors: Mapping[str, TensorHeader], config: Mapping[str, Any]) -> int:
    entry = _quantization(config) or {}
    total = 0
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".")
        if part in ("scales", "biases") and f"{stem}.weight" in tensors:
            continue
        count = tensor.size
        if part == "weight" and f"{stem}.scales" in tensors and tensor.dtype == "uint32":
            own = entry.get(stem)
            bits = own.get("bits") if isinstance(own, Mapping) else entry.get("bits")
            count = count * _WORD_BITS // bits if isinstance(bits, int) and bits > 0 else count
        total += count
    return total
