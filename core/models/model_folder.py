"""Whether a folder holds a model that can be loaded, said before anything heavy is done.

mlx-lm's own messages for an incomplete folder come late and speak of its insides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "*.tiktoken")
_INDEX = "model.safetensors.index.json"
_CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``.

    Raises:
        ModelLoadError: It is missing, not a JSON object, names no model type, or asks for code
            of the folder to be run.
    """
    path = folder / "config.json"
    if not path.is_file():
        hint = ""
        if any(folder.glob("*.gguf")):
            hint = "; it holds a .gguf file: name that file instead"
        raise ModelLoadError(f"{folder} holds no config.json{hint}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelLoadError(f"{path} names no model_type")
    if config.get("model_file") is not None:
        raise ModelLoadError(
            f"{folder.name} brings its own model code ({config['model_file']}), "
            "which pippin does not run"
        )
    return config


def find_weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model, sorted by name.

    Raises:
        ModelLoadError: There are none, or some that the index lists are missing.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        hint = ""
        if any(folder.glob("*.bin")):
            hint = "; convert its PyTorch weights with `mlx_lm.convert`"
        raise ModelLoadError(f"{folder} holds no model*.safetensors{hint}")
    missing = sorted(_indexed_names(folder) - {path.name for path in files})
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelLoadError(f"{folder} is incomplete: {missing[0]}{more} is missing")
    return files


def _indexed_names(folder: Path) -> set[str]:
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        return {str(name) for name in index["weight_map"].values()}
    # The index is a convenience of other loaders. A folder is as good without it.
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def check_tokenizer_files(folder: Path) -> None:
    """Raises ModelLoadError if there is nothing to make a tokenizer from."""
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise ModelLoadError(f"{folder} holds no tokenizer ({', '.join(_TOKENIZER_FILES)})")


def text_setting(config: Mapping[str, Any], key: str) -> Any:
    """A setting of the text model, which multimodal configs keep one level down."""
    value = config.get(key)
    nested = config.get("text_config")
    return nested.get(key) if value is None and isinstance(nested, Mapping) else value


def context_length(config: Mapping[str, Any]) -> int | None:
    """Most tokens the model was made for; ``None`` if its settings do not say."""
    for key in _CONTEXT_KEYS:
        value = text_setting(config, key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
