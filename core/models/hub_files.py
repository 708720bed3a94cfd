"""The files of a hub repository: which ones a model needs, fetched with resume, and checked.

The hub's client starts a file over when its process has died in the middle of it. Weights are worth
more than that: they are fetched here, into the hub's own cache, under its locks and its names. All
else is the client's business.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from .cache_folder import file_lock
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

# Among the client's locks, one of a whole repository: held while pippin fetches or removes it.
REPO_LOCK = "pippin.lock"

_NUM_THREADS = 4
_READ_BYTES = 1 << 20
# The hub gives no larger files over plain HTTP; its client has another way to these.
_MOST_BYTES = 50_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file of a revision, as the hub lists it.

    Attributes:
        sha256: Of files that git keeps by reference, which weights are; ``None`` of others.
        git_sha1: Git's name of the content, or of the reference.
    """

    path: str
    num_bytes: int
    sha256: str | None
    git_sha1: str

    @property
    def blob_name(self) -> str:
        """Its name in the hub's cache."""
        return self.sha256 or self.git_sha1

    def matches(self, path: Path) -> bool:
        """Whether a file on the disk has the very bytes. Reads all of it."""
        if not path.is_file() or path.stat().st_size != self.num_bytes:
            return False
        if self.sha256 is None:
            content = path.read_bytes()
            return _git_sha1(content) == self.git_sha1
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


class ByteCount:
    """Adds up what several threads fetch, and tells a `Progress`.

    Attributes:
        is_stopped: Set it to have all threads end at their next piece.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._told = 0
        self.done = 0
        self.is_stopped = False

    def add(self, num_bytes: int) -> None:
        """More, or with a negative number less, where a server sends a file from its start.

        Raises:
            InterruptedError: The work is to stop.
        """
        if self.is_stopped:
            raise InterruptedError("stopped")
        with self._lock:
            self.done += num_bytes
            if self.done > self._told:
                self._told = self.done
                self._progress.update(self._told)


def silent_bars(on_update: Callable[[int, int], None] = lambda new, seen: None) -> Any:
    """A tqdm class that draws nothing.

    Args:
        on_update: Called with the bytes that are new to a bar, and with all it has seen; from
            several threads. The hub's client makes several bars of the same bytes at once.
    """
    from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

    lock = threading.Lock()

    class SilentBar(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            kwargs.pop("name", None)
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts_bytes:
                with lock:
                    self.n += int(n or 0)
                on_update(int(n or 0), self.n)
            return None

    return SilentBar


def list_files(repo_id: str, revision: str | None) -> tuple[str, list[HubFile], list[str]]:
    """Ask the hub what a model consists of.

    Returns:
        The commit, the files that are needed, and the names of all others.

    Raises:
        Exception: Of the hub's client; `download` puts them into words.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    commit = api.model_info(repo_id, revision=revision or "main").sha
    assert commit is not None, "the hub names a commit"
    listed = {
        entry.path: HubFile(
            path=entry.path,
            num_bytes=entry.size if entry.lfs is None else entry.lfs.size,
            sha256=None if entry.lfs is None else entry.lfs.sha256,
            git_sha1=entry.blob_id,
        )
        for entry in api.list_repo_tree(repo_id, revision=commit, recursive=True)
        if isinstance(entry, RepoFile)
    }
    wanted = {path for path in listed if _matches(path, MODEL_FILES)}
    wanted -= {path for path in wanted if _matches(path, IGNORED_FILES)}
    return commit, [listed[path] for path in sorted(wanted)], sorted(set(listed) - wanted)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def repo_folder(repo_id: str) -> Path:
    """Where the hub's cache keeps a repository."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")


def locks_folder(repo_id: str) -> Path:
    """Where the hub's client keeps a repository's locks."""
    folder = repo_folder(repo_id)
    return folder.parent / ".locks" / folder.name


def missing_files(repo_id: str, commit: str, files: Iterable[HubFile]) -> list[HubFile]:
    """Those that a snapshot lacks, or has in another size."""
    snapshot = repo_folder(repo_id) / "snapshots" / commit
    return [
        file
        for file in files
        if not (snapshot / file.path).is_file()
        or (snapshot / file.path).stat().st_size != file.num_bytes
    ]


def fetch_weights(repo_id: str, commit: str, files: Sequence[HubFile], count: ByteCount) -> None:
    """Fetch the files that the hub gives a sha256 of, going on where an earlier try stopped.

    Raises:
        DownloadError: What came is not what the hub said.
        Exception: Of the hub's client.
    """
    large = [file for file in files if file.sha256 and file.num_bytes <= _MOST_BYTES]
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="pippin-fetch") as threads:
        futures: list[Future[None]] = []
        try:
            futures += [
                threads.submit(_fetch_weight, repo_id, commit, file, count) for file in large
            ]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            count.is_stopped = True
            for future in futures:
                future.cancel()
            raise


def _fetch_weight(repo_id: str, commit: str, file: HubFile, count: ByteCount) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined, unused-ignore]

    blobs, locks = repo_folder(repo_id) / "blobs", locks_folder(repo_id)
    blobs.mkdir(parents=True, exist_ok=True)
    target, part = blobs / file.blob_name, blobs / f"{file.blob_name}.pippin.incomplete"
    # The same lock as the client's, which would fetch the file for a second time.
    with file_lock(locks / f"{file.blob_name}.lock", on_wait=lambda: None):
        if target.exists():
            count.add(file.num_bytes)
            return
        with part.open("ab") as out:
            if out.tell() > file.num_bytes:
                out.truncate(0)
            start = out.tell()
            count.add(start)
            http_get(
                hf_hub_url(repo_id, file.path, revision=commit),
                out,
                resume_size=start,
                headers=build_hf_headers(),
                expected_size=file.num_bytes,
                displayed_filename=file.path,
                tqdm_class=silent_bars(lambda new, _: count.add(new)),
            )
        if not file.matches(part):
            part.unlink()
            raise DownloadError(
                f"{file.path} of {repo_id} is not what the hub says it is: it was damaged on the "
                "way; nothing of it was kept, try again"
            )
        part.rename(target)


def _git_sha1(content: bytes) -> str:
    # Source: Pro Git, 10.2 "Git Objects". A name, and no protection.
    head = f"blob {len(content)}\0".encode()
    return hashlib.sha1(head + content, usedforsecurity=False).hexdigest()
