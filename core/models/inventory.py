"""Which models are on this disk: in pippin's cache folder and in the hub's cache."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..errors import ModelLoadError
from .aliases import DEMO
from .cache_folder import models_folder
from .demo import demo_folder
from .model_facts import ModelFacts, read_facts
from .model_folder import check_tokenizer_files, find_weight_files

Place: TypeAlias = Literal["pippin", "hub"]

_ARTEFACT_PREFIX, _REPO_PREFIX = ".", "models--"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A model on the disk.

    Attributes:
        name: What to call it, to `pippin serve` and all others.
        num_bytes: What it takes on the disk, all revisions and unfinished files included.
        facts: ``None`` where the settings cannot be read.
        source: What it was made of, where that is known.
        revisions: Commits that are there of a hub repository, newest first; `folder` is the first
            one's, or that of the branch ``main``.
        num_partial_bytes: What an interrupted download has left, to go on with.
        problem: Why it could not be loaded; ``None`` if nothing is missing.
    """

    name: str
    place: Place
    folder: Path
    num_bytes: int
    modified_unix: float
    facts: ModelFacts | None = None
    source: str | None = None
    revisions: tuple[str, ...] = ()
    num_partial_bytes: int = 0
    problem: str | None = None


def list_local_models() -> list[LocalModel]:
    """All models on this disk, by name."""
    return sorted([*_own_models(), *_hub_models()], key=lambda model: model.name.lower())


def _own_models() -> list[LocalModel]:
    folder = models_folder()
    if not folder.is_dir():
        return []
    models = []
    for path in folder.iterdir():
        if path.name.startswith(_ARTEFACT_PREFIX) or not path.is_dir():
            continue
        is_demo = path == demo_folder()
        source = read_source(path)
        models.append(
            _describe(
                path,
                name=DEMO if is_demo else path.name,
                place="pippin",
                num_bytes=sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
                modified_unix=path.stat().st_mtime,
                source=next(
                    (str(source[key]) for key in ("hub", "index", "of") if key in source), None
                ),
            )
        )
    return models


def read_source(folder: Path) -> dict[str, Any]:
    """What a folder of ours says of where it came from; empty if nothing."""
    try:
        content = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _hub_models() -> list[LocalModel]:
    # Some tenths of a second, for the one function that knows that cache's layout.
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except (CacheNotFound, ValueError):
        return []
    partial_bytes: dict[str, int] = {}
    for file in cache.incomplete_files:
        folder = file.file_path.parent.parent.name
        partial_bytes[folder] = partial_bytes.get(folder, 0) + file.size_on_disk
    models = []
    for repo in cache.repos:
        if repo.repo_type != "model" or not repo.revisions:
            continue
        newest = sorted(repo.revisions, key=lambda it: ("main" in it.refs, it.last_modified))[::-1]
        partial = partial_bytes.pop(repo.repo_path.name, 0)
        models.append(
            _describe(
                newest[0].snapshot_path,
                name=repo.repo_id,
                place="hub",
                num_bytes=repo.size_on_disk + partial,
                modified_unix=repo.last_modified,
                source=repo.repo_id,
                revisions=tuple(it.commit_hash for it in newest),
                num_partial_bytes=partial,
            )
        )
    known = {repo.repo_path for repo in cache.repos}
    for path in Path(constants.HF_HUB_CACHE).resolve().glob(f"{_REPO_PREFIX}*"):
        if path not in known:
            models.append(
                LocalModel(
                    name=path.name.removeprefix(_REPO_PREFIX).replace("--", "/", 1),
                    place="hub",
                    folder=path,
                    num_bytes=sum(blob.stat().st_size for blob in path.glob("blobs/*")),
                    modified_unix=path.stat().st_mtime,
                    num_partial_bytes=partial_bytes.get(path.name, 0),
                    problem="it is not completely fetched",
                )
            )
    return models


def _describe(folder: Path, **known: Any) -> LocalModel:
    facts, problem = None, None
    try:
        facts = read_facts(folder)
        find_weight_files(folder)
        check_tokenizer_files(folder)
    except ModelLoadError as error:
        # The folder's path says nothing beside the model's name.
        problem = str(error).replace(str(folder), "it")
    return LocalModel(folder=folder, facts=facts, problem=problem, **known)
