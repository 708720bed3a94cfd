"""Sessions are written whole, for their owner alone, and not over each other."""

import os
from pathlib import Path

import pytest

from pippin.cli.chat.session import Session, Turn
from pippin.cli.chat.session_files import SessionFiles, history_file
from pippin.core.errors import PippinError

SESSION = Session(turns=(Turn("user", "hi"), Turn("assistant", "hello")))


def test_only_the_owner_may_read_what_was_said(data_folder: Path) -> None:
    path = SessionFiles().save(SESSION, "one", over=False)
    assert path == data_folder / "sessions" / "one.toml"
    modes = [it.stat().st_mode & 0o777 for it in (path, path.parent, history_file())]
    assert modes == [0o600, 0o700, 0o600]


def test_another_session_is_replaced_only_if_asked_for() -> None:
    SessionFiles().save(SESSION, "one", over=False)
    files = SessionFiles()
    with pytest.raises(PippinError, match="/save -f one"):
        files.save(Session(), "one", over=False)
    assert files.load("one") == SESSION
    files.save(Session(system="new"), "one", over=False)  # it is ours by now
    assert SessionFiles().load("one").system == "new"
    SessionFiles().save(SESSION, "one", over=True)
    assert SessionFiles().load("one") == SESSION


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = SessionFiles()
    path = files.save(SESSION, "one", over=False)

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(PippinError, match="No space left"):
        files.save(Session(), "one", over=False)
    assert files.load("one") == SESSION
    assert [it.name for it in path.parent.iterdir()] == ["one.toml"]


def test_the_newest_automatic_files_stay_and_no_other_goes(data_folder: Path) -> None:
    files = SessionFiles()
    for number in range(25):
        name = "mine" if number == 0 else f"auto-{number}"
        os.utime(files.save(SESSION, name, over=False), (number, number))
    running = SessionFiles().autosave(SESSION)
    left = [f"auto-{number}" for number in range(24, 5, -1)]
    assert SessionFiles().names() == [running, *left, "mine"]


def test_one_conversation_saves_itself_in_one_file() -> None:
    files = SessionFiles()
    first = files.autosave(Session())
    assert files.autosave(SESSION) == first
    assert files.load(first) == SESSION
    files.begin_anew()
    assert files.autosave(Session()) != first


@pytest.mark.parametrize("name", ["", ".hidden", "a b", "x" * 101, "a\0b"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(PippinError, match="no name of a session"):
        SessionFiles().save(Session(), name, over=False)


def test_paths_are_taken_and_what_is_not_there_is_named(tmp_path: Path) -> None:
    files, path = SessionFiles(), tmp_path / "own.toml"
    files.save(SESSION, str(path), over=False)
    assert files.load(str(path)) == SESSION
    with pytest.raises(PippinError, match="no session 'gone'"):
        files.load("gone")
    path.write_bytes(b"\xff")
    with pytest.raises(PippinError, match=r"own\.toml is not UTF-8"):
        files.load(str(path))
    path.write_text("turns = [", encoding="utf-8")
    with pytest.raises(PippinError, match=r"own\.toml: not valid TOML"):
        files.load(str(path))
