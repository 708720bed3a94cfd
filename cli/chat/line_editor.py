"""Where the user types: with cursor, history and completion, or a plain line on a dumb terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
    WordCompleter,
)
from prompt_toolkit.document import Document
from prompt_toolkit.filters import completion_is_selected
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from .session_files import history_file

_CONTINUES = "\\"


class LineEditor(Protocol):
    """Asks for a message or a command."""

    def read(self, label: str, draft: str) -> str:
        """What is typed.

        Args:
            label: Stands before it.
            draft: What is there to begin with.

        Raises:
            EOFError: The user wants to leave.
        """


class Suggestions(Protocol):
    """What can be completed."""

    def commands(self) -> dict[str, str]:
        """Each with a slash, and what it does."""

    def arguments(self, command: str) -> Iterable[str] | None:
        """What may follow a command; ``None`` for a path."""


class PlainEditor:
    """One line at a time, without moving the cursor. The label goes to stderr."""

    def read(self, label: str, draft: str) -> str:
        """See `LineEditor.read`; a draft cannot be shown for editing."""
        lines: list[str] = []
        while True:
            print(label if not lines else "  ", end="", file=sys.stderr, flush=True)
            try:
                line = sys.stdin.readline()
            except KeyboardInterrupt:
                line = ""
            if not line:
                print(file=sys.stderr)
                raise EOFError
            line = line.rstrip("\n")
            lines.append(line.removesuffix(_CONTINUES))
            if not line.endswith(_CONTINUES):
                return "\n".join(lines)


class FullEditor:
    """Enter sends; Alt-Enter, a backslash before Enter and pasted text make lines."""

    def __init__(self, suggestions: Suggestions) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history_file())),
            completer=_ChatCompleter(suggestions),
            key_bindings=_key_bindings(),
            multiline=True,
            prompt_continuation="  ",
            enable_open_in_editor=True,
        )

    def read(self, label: str, draft: str) -> str:
        """See `LineEditor.read`."""
        return self._session.prompt(label, default=draft)


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add(Keys.Enter)
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith(_CONTINUES):
            buffer.delete_before_cursor()
            buffer.newline()
        else:
            buffer.validate_and_handle()

    @bindings.add(Keys.Enter, filter=completion_is_selected)
    def choose(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None

    @bindings.add(Keys.Escape, Keys.Enter)
    @bindings.add(Keys.Escape, Keys.ControlJ)  # the same, typed while an answer came
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline()

    @bindings.add(Keys.ControlC)
    def clear_or_leave(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=EOFError())

    return bindings


class _ChatCompleter(Completer):
    """Commands, and what may follow each."""

    def __init__(self, suggestions: Suggestions) -> None:
        self._suggestions = suggestions
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """See `Completer.get_completions`."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        command, space, argument = text.partition(" ")
        if not space:
            for name, meaning in self._suggestions.commands().items():
                if name.startswith(command):
                    yield Completion(name, -len(command), display_meta=meaning)
            return
        rest = Document(argument.lstrip())
        words = self._suggestions.arguments(command)
        completer = self._paths if words is None else WordCompleter(list(words), sentence=True)
        yield from completer.get_completions(rest, complete_event)
