import io
import logging

import pytest
from rich.console import Console

from pippin.cli.console import (
    ConsoleLogHandler,
    format_duration,
    make_data_console,
    make_talk_console,
    set_up_logging,
)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.35, "350 ms"),
        (4.21, "4.2 s"),
        (59.94, "59.9 s"),
        (185, "3 min 5 s"),
        (3600, "60 min 0 s"),
    ],
)
def test_durations_read_well(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


def test_data_and_talk_go_their_own_ways(capsys: pytest.CaptureFixture[str]) -> None:
    make_data_console().print("data " * 40)
    make_talk_console().print("talk")
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1  # not folded at 80 columns
    assert captured.err == "talk\n"


def test_log_lines_are_neither_folded_nor_read_as_markup() -> None:
    out = io.StringIO()
    handler = ConsoleLogHandler(Console(file=out, width=20))
    record = logging.LogRecord(
        "pippin.x", logging.INFO, "f", 1, "event [bold]text[/] :smile: " + "x" * 50, (), None
    )
    handler.emit(record)
    assert out.getvalue().count("\n") == 1
    assert "INFO    pippin.x event [bold]text[/] :smile: xxx" in out.getvalue()


def test_only_our_own_log_is_talkative() -> None:
    out = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        set_up_logging(Console(file=out), "debug")
        logging.getLogger("pippin.core").debug("ours")
        logging.getLogger("httpx").info("theirs")
    finally:
        root.handlers[:], root.level = before
        logging.getLogger("pippin").setLevel(logging.NOTSET)
    assert "ours" in out.getvalue()
    assert "theirs" not in out.getvalue()
