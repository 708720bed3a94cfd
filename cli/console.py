"""The two consoles: data on stdout, talk on stderr. And the log, which is talk."""

from __future__ import annotations

import logging

from rich.console import Console

# Without a width of its own a console that is no terminal would fold lines at 80 columns.
_PLAIN_WIDTH = 200


def make_data_console() -> Console:
    """For what a program may want to read."""
    return _make_console(stderr=False)


def make_talk_console() -> Console:
    """For what only people want to read."""
    return _make_console(stderr=True)


def _make_console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=_PLAIN_WIDTH)
    return console


def format_duration(seconds: float) -> str:
    """``350 ms``, ``4.2 s``, ``3 min 5 s``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


class ConsoleLogHandler(logging.Handler):
    """Writes log lines through a console, so that they do not cut through a progress bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)-7s %(name)s %(message)s", "%H:%M:%S")
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, unfolded and without markup: it may hold any text."""
        try:
            self._console.print(
                self.format(record), markup=False, highlight=False, soft_wrap=True, emoji=False
            )
        except Exception:
            self.handleError(record)


def set_up_logging(console: Console, level: str) -> None:
    """Send the log of the whole process to the console, ours from `level` on."""
    logging.basicConfig(handlers=[ConsoleLogHandler(console)], level=logging.WARNING, force=True)
    # Other libraries say at INFO what is no operator's business.
    logging.getLogger("pippin").setLevel(level.upper())
