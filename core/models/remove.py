"""Deleting models from this disk, but none that is being fetched or made."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import PippinError
from .cache_folder import file_lock
from .hub_files import REPO_LOCK, locks_folder, repo_folder
from .inventory import LocalModel


def remove_model(model: LocalModel, revisions: Sequence[str] = ()) -> int:
    """Delete a model.

    Args:
        revisions: Of a hub repository, full commits; all by default.

    Returns:
        Bytes that are free now.

    Raises:
        PippinError: It is in use by a download or a conversion, or cannot be deleted.
    """
    try:
        with _nobody_at_work(model):
            if model.place == "pippin":
                return _remove_own(model)
            return _remove_from_hub_cache(model, revisions)
    except OSError as error:
        raise PippinError(f"{model.name} cannot be deleted: {error.strerror or error}") from error


def _remove_own(model: LocalModel) -> int:
    # Out of sight at once: half a folder must not be taken for a model. And under a name that is
    # swept up the next time this one is made, should we die.
    prefix = f".{model.folder.name}.part-"
    gone = Path(tempfile.mkdtemp(prefix=prefix, dir=model.folder.parent))
    model.folder.rename(gone / "model")
    shutil.rmtree(gone)
    return model.num_bytes


def _remove_from_hub_cache(model: LocalModel, revisions: Sequence[str]) -> int:
    from huggingface_hub import constants, scan_cache_dir

    wanted = set(revisions or model.revisions)
    takes_all = wanted >= set(model.revisions)
    strategy = scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(*wanted)
    strategy.execute()
    folder = repo_folder(model.name)
    if takes_all and folder.exists():
        # What the client does not know as a repository, or could not delete, which it only logs.
        shutil.rmtree(folder)
    return model.num_bytes if takes_all else strategy.expected_freed_size


@contextmanager
def _nobody_at_work(model: LocalModel) -> Iterator[None]:
    """Hold all locks of those that fetch or make a model."""

    def refuse() -> None:
        raise PippinError(f"{model.name} is being fetched or made right now; nothing was deleted")

    with ExitStack() as stack:
        if model.place == "pippin":
            lock = model.folder.parent / f".{model.folder.name}.lock"
            stack.enter_context(file_lock(lock, on_wait=refuse))
        else:
            locks = locks_folder(model.name)
            for path in {locks / REPO_LOCK, *locks.glob("*.lock")}:
                stack.enter_context(file_lock(path, on_wait=refuse))
        yield
