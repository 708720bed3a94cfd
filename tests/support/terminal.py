"""The real command in a pseudo-terminal, as somebody sits before it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

TIMEOUT_S = 60
ENTER, ALT_ENTER, CTRL_C, CTRL_D = "\r", "\x1b\r", "\x03", "\x04"
_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|[=>])")


class Terminal:
    """One command in one terminal.

    Attributes:
        output: All that it wrote.
    """

    def __init__(self, process: subprocess.Popen[bytes], end: int) -> None:
        self.output = ""
        self._process = process
        self._end = end
        self._seen = 0

    @property
    def text(self) -> str:
        """What it wrote behind the last mark that was waited for, without what moves the cursor."""
        return _ESCAPE.sub("", self.output)[self._seen :]

    def send(self, text: str) -> None:
        """Type."""
        os.write(self._end, text.encode())

    def wait_for(self, mark: str) -> str:
        """Read until a text shows; return what came up to it."""
        deadline = time.monotonic() + TIMEOUT_S
        while mark not in self.text:
            assert time.monotonic() < deadline, f"{mark!r} never came: {self.text[-2000:]!r}"
            assert self._read(), f"it ended without {mark!r}: {self.text[-2000:]!r}"
        before = self.text.partition(mark)[0]
        self._seen += len(before) + len(mark)
        return before

    def wait_for_end(self) -> int:
        """Read until the command ends; return its exit code."""
        while self._read():
            pass
        return self._process.wait(TIMEOUT_S)

    def echoes(self) -> bool:
        """Whether what is typed shows by itself."""
        return bool(termios.tcgetattr(self._end)[3] & termios.ECHO)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._end], [], [], TIMEOUT_S)
        assert ready, f"nothing comes any more: {self.text[-2000:]!r}"
        try:
            part = os.read(self._end, 65536)
        except OSError:  # Linux says so when the other side is closed
            part = b""
        self.output += part.decode(errors="replace")
        return bool(part)


@contextmanager
def terminal(
    command: Sequence[str], *, columns: int = 100, env: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Terminal]:
    """Run a command for as long as the block lasts; it is killed if it still runs then."""
    end, other = pty.openpty()
    termios.tcsetwinsize(other, (30, columns))
    process = subprocess.Popen(
        command,
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
        # Its own terminal, so that Ctrl-C reaches it as a signal.
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
        env={**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **env},
    )
    os.close(other)
    try:
        yield Terminal(process, end)
    finally:
        process.kill()
        process.wait()
        os.close(end)
