"""Models in pippin's own cache folder, and how a finished folder gets into it.

A folder appears under its final name complete or not at all, and two processes that want the same
one do the work once. Everything in it can be made again, so deleting it is always safe.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..folders import cache_folder


def models_folder() -> Path:
    """Where whole models lie, a folder each; it need not exist yet."""
    return cache_folder() / "models"


@contextmanager
def file_lock(path: Path, *, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock between processes. The system drops it if the holder dies.

    Args:
        path: Lock file, made if missing and left behind: removing it would let a third process
            lock a new file of the same name.
        on_wait: Called once if somebody else holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def publish_folder(
    target: Path,
    build: Callable[[Path], None],
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> Path:
    """Return `target`, and let `build` fill it first if it does not exist.

    Args:
        target: Final name of the folder.
        build: Fills the empty folder it is given, which lies beside `target`. If it raises, or
            the process dies, `target` does not appear.
        on_wait: Called once if another process is building right now.
    """
    if target.is_dir():
        return target
    lock = target.parent / f".{target.name}.lock"
    with file_lock(lock, on_wait=on_wait):
        if target.is_dir():
            return target
        prefix = f".{target.name}.part-"
        # We hold the lock, so whatever has this prefix was left by somebody who died.
        for stale in target.parent.glob(f"{prefix}*"):
            shutil.rmtree(stale, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        try:
            build(part)
            _sync(part)
            part.rename(target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return target


def _sync(folder: Path) -> None:
    # Without it a power cut after the rename could leave a complete-looking folder of empty files.
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
