"""Where sessions and the history of what was typed are kept.

They are the user's own: in the data folder and not among the caches, and read by nobody else.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

from pippin.core.errors import PippinError
from pippin.core.folders import data_folder

from .session import Session, read_session, write_session

_AUTO = "auto-"
_NUM_AUTO = 20
_NAME = re.compile(r"\w[\w.-]{0,99}")


def history_file() -> Path:
    """The file of what was typed, made if it is missing."""
    path = data_folder() / "chat_history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        raise PippinError(f"{path} cannot be written: {error.strerror}") from error
    return path


class SessionFiles:
    """The saved sessions, and where the running one saves itself."""

    def __init__(self) -> None:
        self._folder = data_folder() / "sessions"
        self._own: set[Path] = set()
        self._auto: Path | None = None

    def names(self) -> list[str]:
        """Of all sessions, the newest first."""
        try:
            files = [(path.stat().st_mtime, path.stem) for path in self._folder.glob("*.toml")]
        except OSError:
            return []
        return [name for _, name in sorted(files, reverse=True)]

    def save(self, session: Session, name: str, *, over: bool) -> Path:
        """Write a session.

        Args:
            over: Whether it may take the place of one that was neither loaded nor saved here.

        Raises:
            PippinError: It cannot be written.
        """
        path = self._path(name)
        if path.exists() and path not in self._own and not over:
            raise PippinError(f"there is a session '{name}'; /save -f {name} takes its place")
        _write(path, session)
        self._own.add(path)
        return path

    def load(self, name: str) -> Session:
        """Read a session.

        Raises:
            PippinError: There is none of the name, or the file is damaged.
        """
        path = self._path(name)
        try:
            session = read_session(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise PippinError(f"there is no session '{name}' ({path})") from error
        except OSError as error:
            raise PippinError(f"{path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise PippinError(f"{path} is not UTF-8: {error.reason}") from error
        except PippinError as error:
            raise PippinError(f"{path}: {error}") from error
        self._own.add(path)
        return session

    def autosave(self, session: Session) -> str:
        """Write the running session to a file of its own, and return its name."""
        if self._auto is None:
            stem = time.strftime(f"{_AUTO}%Y%m%d-%H%M%S")
            self._auto = self._path(stem)
            while self._auto.exists():
                stem += "b"
                self._auto = self._path(stem)
            for old in [name for name in self.names() if name.startswith(_AUTO)][_NUM_AUTO - 1 :]:
                self._path(old).unlink(missing_ok=True)
        _write(self._auto, session)
        return self._auto.stem

    def begin_anew(self) -> None:
        """Leave the last automatic file as it is: another conversation begins."""
        self._auto = None

    def _path(self, name: str) -> Path:
        if "/" in name:
            return Path(name).expanduser()
        if not _NAME.fullmatch(name):
            raise PippinError(f"'{name}' is no name of a session; use letters, digits, . _ and -")
        return self._folder / f"{name}.toml"


def _write(path: Path, session: Session) -> None:
    """Write all of it or nothing, for the owner alone."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                file.write(write_session(session))
                file.flush()
                os.fsync(file.fileno())
            Path(part).replace(path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PippinError(f"{path} cannot be written: {error.strerror}") from error
