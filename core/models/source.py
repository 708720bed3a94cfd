"""What a model argument means: an alias, the demo, a model of pippin's cache folder, a folder, a
GGUF file, or a repository on the hub.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..errors import ModelLoadError
from .aliases import DEMO, follow_aliases
from .cache_folder import models_folder

__all__ = ["DEMO", "ModelSource", "SourceKind", "resolve_source"]

# Source: huggingface.co, "Repositories": letters, digits, `.`, `_` and `-` on both sides.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# A folder's name in the cache folder; those that begin with a dot are not finished.
_KEPT = re.compile(r"[^./][^/]*")


class SourceKind(Enum):
    """Where a model comes from."""

    DEMO = "demo"
    FOLDER = "folder"
    GGUF = "gguf"
    HUB = "hub"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model argument, understood.

    Attributes:
        model_id: The name a server gives the model if nobody says otherwise.
        path: The folder or file, for the kinds that are one.
    """

    kind: SourceKind
    model_id: str
    path: Path | None = None


def resolve_source(text: str) -> ModelSource:
    """Tell what a model argument means. Looks at the disk, never at the network.

    An existing folder wins over a hub id that reads the same; ``./demo`` is a folder, ``demo``
    is the demo model. So it is with aliases, and with the names of models in the cache folder.

    Raises:
        ModelLoadError: It is none of these, or a path that does not exist.
        ConfigError: The aliases cannot be read.
    """
    if text != DEMO:
        text = follow_aliases(text)
    if text == DEMO:
        return ModelSource(kind=SourceKind.DEMO, model_id=DEMO)
    if _KEPT.fullmatch(text) and (models_folder() / text / "config.json").is_file():
        path = models_folder() / text
        return ModelSource(kind=SourceKind.FOLDER, model_id=text, path=path)
    # Shells expand `~`, settings files and variables do not.
    path = Path.home() / text[2:] if text.startswith("~/") else Path(text)
    if text and path.is_dir():
        return ModelSource(
            kind=SourceKind.FOLDER, model_id=path.resolve().name or "model", path=path
        )
    if text.lower().endswith(".gguf"):
        if not path.is_file():
            raise ModelLoadError(f"there is no file {text}")
        return ModelSource(kind=SourceKind.GGUF, model_id=path.stem, path=path)
    if path.is_file():
        raise ModelLoadError(f"{text} is a file, but not a .gguf; give the model's folder instead")
    if _HUB_ID.fullmatch(text):
        return ModelSource(kind=SourceKind.HUB, model_id=text)
    raise ModelLoadError(
        f"no model '{text}': it is neither a folder, nor a .gguf file, nor a hub id like org/name, "
        f"nor '{DEMO}', nor an alias; `pippin models ls` shows what there is"
    )
