"""Fetching a model from the Hugging Face hub, with errors that say what to do.

Files land in the hub's own cache, shared with every other program; what is there already is not
fetched again, and an interrupted file goes on where it stopped.
"""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from .progress import Progress

# Weights, settings, tokenizer, template. Never code, and no second copy in another format.
MODEL_FILES = (
    "*.json",
    "*.safetensors",
    "*.jinja",
    "*.txt",
    "tokenizer.model",
    "*.tiktoken",
)
# Folders of other runtimes that repositories carry along.
IGNORED_FILES = (
    "onnx/*",
    "openvino/*",
    "original/*",
    "runs/*",
    "gguf/*",
    "consolidated*.safetensors",
)

_PROBE_TIMEOUT_S = 4.0


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

    Without a network, a repository that is in the hub's cache already is used as it is.

    Raises:
        DownloadError: There is no such repository, it wants a licence accepted, or the hub cannot
            be reached; the message says what to do.
    """
    from huggingface_hub import errors, snapshot_download

    reachable = hub_is_reachable()
    if reachable:
        progress.start("download", f"fetching {repo_id}")
    try:
        folder = snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=list(MODEL_FILES),
            ignore_patterns=list(IGNORED_FILES),
            local_files_only=not reachable,
            tqdm_class=_make_bar_class(progress),
        )
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repo_id} is gated: accept its licence on huggingface.co/{repo_id}, "
            "then run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"the hub has no model {repo_id}, or it is private: check the name, "
            "or run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{repo_id} has no revision {revision}") from error
    except errors.LocalEntryNotFoundError as error:
        raise DownloadError(_unreachable(repo_id)) from error
    # Transport errors are httpx's or httpx2's, by the version of huggingface_hub.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DownloadError(f"fetching {repo_id} failed: {reason}; try again to resume") from error
    if reachable:
        progress.finish()
    return Path(folder)


def _unreachable(repo_id: str) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return f"{repo_id} is not in the local cache; unset HF_HUB_OFFLINE to fetch it"
    return (
        f"{repo_id} is not (completely) in the local cache and {constants.ENDPOINT} cannot be "
        "reached; check the network, or give a local folder"
    )


def _make_bar_class(progress: Progress) -> Any:
    """A tqdm class that draws nothing and passes bytes on.

    The hub's client makes several bars at once (files, bytes received, bytes written) and calls
    them from several threads. The byte bar that is furthest is what gets reported.
    """
    from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

    lock = threading.Lock()
    reported = 0

    class SilentBar(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            kwargs.pop("name", None)
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal reported
            if self._counts_bytes:
                with lock:
                    self.n += int(n or 0)
                    if self.n > reported:
                        reported = self.n
                        progress.update(reported, total_bytes=int(self.total or 0) or None)
            return None

    return SilentBar
