"""Fetching a model from the Hugging Face hub, with errors that say what to do.

Files land in the hub's own cache, shared with every other program; what is there already is not
fetched again, and an interrupted file goes on where it stopped.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import DownloadError
from .cache_folder import file_lock
from .hub_files import (
    IGNORED_FILES,
    MODEL_FILES,
    REPO_LOCK,
    ByteCount,
    HubFile,
    fetch_weights,
    list_files,
    locks_folder,
    missing_files,
    repo_folder,
    silent_bars,
)
from .progress import Progress

logger = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 4.0
# Its head names the licence, which no other file does.
_MODEL_CARD = "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledModel:
    """A repository that is on the disk, and what that took.

    Attributes:
        revision: The commit.
        num_bytes: Of all its files.
        num_fetched_files: Those that were not there, or were damaged.
        num_verified_files: Those whose very bytes were compared with the hub's checksums.
        is_offline: Whether the hub could not be asked for a newer revision.
    """

    repo_id: str
    revision: str
    folder: Path
    num_bytes: int = 0
    num_fetched_files: int = 0
    num_fetched_bytes: int = 0
    num_verified_files: int = 0
    is_offline: bool = False


def hub_is_reachable() -> bool:
    """Whether the hub answers at once. Costs a few seconds at the very most."""
    # Heavy, and a local model does not need it.
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
    # On a thread, because the time that a name server may take has no limit of its own.
    threading.Thread(
        target=lambda: answers.put(_answers(constants.ENDPOINT)), daemon=True, name="pippin-probe"
    ).start()
    try:
        return answers.get(timeout=_PROBE_TIMEOUT_S)
    except queue.Empty:
        return False


def _answers(url: str) -> bool:
    import httpx

    try:
        httpx.head(url, timeout=_PROBE_TIMEOUT_S, follow_redirects=False)
    # Whatever is in the way, from a refused connection to a proxy setting httpx cannot use.
    except Exception:
        return False
    return True


def download_model(repo_id: str, progress: Progress, *, revision: str | None = None) -> Path:
    """Return the local folder of a hub repository, fetching what is missing.

    Raises:
        DownloadError: See `pull_model`.
    """
    return pull_model(repo_id, progress, revision=revision).folder


def pull_model(
    repo_id: str, progress: Progress, *, revision: str | None = None, verify: bool = False
) -> PulledModel:
    """Bring a hub repository to this machine, and say what was done.

    Sizes are always compared with the hub's, checksums of what is fetched. Where the hub does not
    answer, or not to us, a repository that is in its cache already is used as it is.

    Args:
        verify: Read all that was there before too, and fetch again what is damaged.

    Raises:
        DownloadError: There is no such repository, it wants a licence accepted, or the hub cannot
            be reached; the message says what to do.
    """
    with _errors_in_words(repo_id, revision):
        try:
            if not hub_is_reachable():
                raise DownloadError(_unreachable(repo_id))
            commit, files, others = list_files(repo_id, revision)
        # Whatever the hub's trouble is, or that of the token: what is there can be used.
        except Exception as error:
            found = None if verify else _find_local(repo_id, revision)
            if found is None:
                raise
            logger.debug("%s is taken from the local cache: %s", repo_id, error)
            return found
        if not any(file.path.endswith(".safetensors") for file in files):
            has_gguf = any(name.lower().endswith(".gguf") for name in others)
            hint = "; fetch one of its .gguf files and give its path" if has_gguf else ""
            raise DownloadError(f"{repo_id} holds no safetensors weights{hint}")
        missing: list[HubFile] = []
        # A cache that is complete may be one that cannot be written, without a place for locks.
        if verify or missing_files(repo_id, commit, files):
            lock = locks_folder(repo_id) / REPO_LOCK
            with file_lock(lock, on_wait=partial(_note_waiting, progress, repo_id)):
                missing = _fetch(repo_id, commit, files, progress, verify=verify)
                if _MODEL_CARD in others:
                    _fetch_model_card(repo_id, commit)
        # Also when nothing is missing: a branch may have come to mean this commit.
        folder = _snapshot(repo_id, revision)
    return PulledModel(
        repo_id=repo_id,
        revision=commit,
        folder=folder,
        num_bytes=sum(file.num_bytes for file in files),
        num_fetched_files=len(missing),
        num_fetched_bytes=sum(file.num_bytes for file in missing),
        num_verified_files=len(files) if verify else len(missing),
    )


def find_downloaded(repo_id: str) -> Path:
    """The folder of a repository that is in the hub's cache; nothing is fetched.

    Raises:
        DownloadError: It is not there.
    """
    found = _find_local(repo_id, None)
    if found is None:
        raise DownloadError(
            f"{repo_id} is not (completely) on this disk; `pippin models pull {repo_id}` fetches it"
        )
    return found.folder


def _find_local(repo_id: str, revision: str | None) -> PulledModel | None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = _snapshot(repo_id, revision, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return PulledModel(
        repo_id=repo_id,
        revision=folder.name,
        folder=folder,
        num_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        is_offline=True,
    )


def _note_waiting(progress: Progress, repo_id: str) -> None:
    progress.note(f"another process is busy with {repo_id}; waiting for it")


def _fetch(
    repo_id: str, commit: str, files: Sequence[HubFile], progress: Progress, *, verify: bool
) -> list[HubFile]:
    """Fetch what is missing of a snapshot, or damaged; return it."""
    folder = repo_folder(repo_id) / "snapshots" / commit
    missing = missing_files(repo_id, commit, files)
    if verify:
        missing += _damaged(folder, [file for file in files if file not in missing], progress)
    for file in missing:
        # The client takes whatever lies there for the file.
        for path in ((folder / file.path).resolve(), folder / file.path):
            path.unlink(missing_ok=True)
    total = sum(file.num_bytes for file in missing)
    progress.start("download", f"fetching {repo_id}", total_bytes=total)
    count = ByteCount(progress)
    fetch_weights(repo_id, commit, missing, count)
    base = count.done
    bars = silent_bars(lambda _, seen: count.add(max(0, base + seen - count.done)))
    _snapshot(repo_id, commit, tqdm_class=bars)
    for file in missing:
        if not file.sha256 and not file.matches(folder / file.path):
            raise DownloadError(f"{file.path} of {repo_id} is not what the hub says it is")
    progress.finish()
    return missing


def _damaged(folder: Path, files: Sequence[HubFile], progress: Progress) -> list[HubFile]:
    progress.start("verify", "reading", total_bytes=sum(file.num_bytes for file in files))
    damaged, done = [], 0
    for file in files:
        if not file.matches(folder / file.path):
            damaged.append(file)
            progress.note(f"{file.path} is damaged and is fetched again")
        done += file.num_bytes
        progress.update(done)
    progress.finish()
    return damaged


def _snapshot(repo_id: str, revision: str | None, **options: object) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(  # type: ignore[call-overload, unused-ignore]
            repo_id,
            revision=revision,
            allow_patterns=list(MODEL_FILES),
            ignore_patterns=list(IGNORED_FILES),
            **{"tqdm_class": silent_bars(), **options},
        )
    )


def _fetch_model_card(repo_id: str, commit: str) -> None:
    from huggingface_hub import hf_hub_download

    # A model is as good without it.
    with suppress(Exception):
        hf_hub_download(repo_id, _MODEL_CARD, revision=commit)


@contextmanager
def _errors_in_words(repo_id: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub import constants, errors

    try:
        yield
    except DownloadError:
        raise
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repo_id} is gated: accept its licence on {constants.ENDPOINT}/{repo_id}, "
            "then run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"the hub has no model {repo_id}, or it is private: check the name, "
            "or run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{repo_id} has no revision {revision}") from error
    # Transport errors are httpx's or httpx2's, by the version of huggingface_hub.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DownloadError(f"fetching {repo_id} failed: {reason}; try again to resume") from error


def _unreachable(repo_id: str) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return f"{repo_id} is not in the local cache; unset HF_HUB_OFFLINE to fetch it"
    return (
        f"{repo_id} is not (completely) in the local cache and {constants.ENDPOINT} cannot be "
        "reached; check the network, or give a local folder"
    )
