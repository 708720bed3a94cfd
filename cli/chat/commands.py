"""What begins with a slash: the commands of a conversation."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.table import Table
from rich.text import Text

from pippin.core.errors import PippinError

from .attachments import Kind, read_attachment
from .markdown_blocks import AnswerMarkdown
from .reply import Reply
from .session import Session
from .settings import SETTINGS, read_setting, setting_name, show_value
from .talk import Talk

# A path or a fraction of one is no command; two slashes begin a message with one.
_COMMAND = re.compile(r"/([a-z]*)(?:\s+(.*))?", re.DOTALL)
_KEYS = {
    "Enter": "sends; after a backslash it makes a new line, as does Alt-Enter",
    "Ctrl-C": "stops an answer and keeps what came; clears a line; leaves on an empty one",
    "Ctrl-D": "leaves",
    "Tab": "completes commands, paths, sessions, settings and models",
    "Up": "goes through what was typed before",
    "//": "begins a message with a slash",
}


class LeaveChat(Exception):
    """The user has had enough."""


class Commands:
    """The commands of one `Talk`."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._screen = talk.screen

    def commands(self) -> dict[str, str]:
        """See `Suggestions.commands`."""
        return {f"/{name}": entry[2] for name, entry in _TABLE.items()}

    def arguments(self, command: str) -> Iterable[str] | None:
        """See `Suggestions.arguments`."""
        if command in ("/load", "/save"):
            return self._talk.files.names()
        if command == "/set":
            return list(SETTINGS)
        if command == "/model":
            return self._talk.backend.known_models()
        return None if command in ("/file", "/image", "/audio") else ()

    def try_run(self, line: str) -> bool:
        """Carry out a line if it is a command.

        Raises:
            PippinError: There is no such command, or it failed.
            LeaveChat: It was the last one.
        """
        found = _COMMAND.fullmatch(line)
        if found is None:
            return False
        name, argument = found[1], (found[2] or "").strip()
        if name not in _TABLE:
            close = difflib.get_close_matches(name, _TABLE, n=1)
            hint = f"did you mean /{close[0]}?" if close else "/help lists them;"
            raise PippinError(f"no command /{name}; {hint} // begins a message with a slash")
        method, arguments, _ = _TABLE[name]
        if argument and not arguments:
            raise PippinError(f"/{name} takes nothing behind it")
        method(self, argument)
        return True

    def tell(self, reply: Reply) -> None:
        """Say how an answer ended."""
        if reply.error is not None:
            self._screen.complain(str(reply.error))
        if self._talk.draft.text and reply.is_empty:
            how = "below" if self._screen.can_edit else "/retry sends it again"
            self._screen.say(f"your message is kept: {how}")
        else:
            self._screen.say(f"{reply.stats_line()}\n")

    def _help(self, argument: str) -> None:
        table = Table.grid(padding=(0, 2))
        for name, (_, arguments, meaning) in _TABLE.items():
            table.add_row(Text(f"/{name} {arguments}"), Text(meaning))
        table.add_row()
        for key, meaning in _KEYS.items():
            table.add_row(key, meaning)
        self._screen.show(table)

    def _attach(self, kind: Kind, where: str) -> None:
        attached = self._talk.draft.attachments
        if where:
            attached.append(read_attachment(kind, where))
            self._screen.say(f"{attached[-1].name} goes with the next message")
        else:
            self._talk.draft.attachments = [it for it in attached if it.kind != kind]
            self._screen.say(f"no {kind} goes with the next message")

    def _file(self, where: str) -> None:
        self._attach("file", where)

    def _image(self, where: str) -> None:
        self._attach("image", where)

    def _audio(self, where: str) -> None:
        self._attach("audio", where)

    def _system(self, text: str) -> None:
        session = self._talk.session
        if text:
            session.system = "" if text == "off" else text
        self._screen.say(f"system: {session.system}" if session.system else "no system prompt")

    def _model(self, name: str) -> None:
        talk, backend = self._talk, self._talk.backend
        if name:
            talk.run(backend.switch(name))
            talk.last_usage = None
        others = [other for other in backend.known_models() if other != backend.model]
        self._screen.say(f"model: {backend.model}")
        if name and others and name not in backend.known_models() and name == backend.model:
            self._screen.say("it is not among those that the server lists")
        if not name and others:
            self._screen.say(f"others: {', '.join(others)}")

    def _set(self, text: str) -> None:
        settings = self._talk.session.settings
        name, _, value = (part.strip() for part in text.replace("=", " ", 1).partition(" "))
        if not name:
            table = Table.grid(padding=(0, 2))
            for known, meaning in SETTINGS.items():
                shown = show_value(settings[known]) if known in settings else "-"
                table.add_row(known, Text(shown), Text(meaning))
            self._screen.show(table)
            return
        name = setting_name(name)
        # `thinking` itself can be off; it goes back to the model's own with `default`.
        if value == "default" or (value == "off" and name != "thinking"):
            settings.pop(name, None)
        elif value:
            settings[name] = read_setting(name, value)
        shown = show_value(settings[name]) if name in settings else "the model's default"
        self._screen.say(f"{name}: {shown}")

    def _save(self, argument: str) -> None:
        flag, _, rest = argument.partition(" ")
        name = rest.strip() if flag == "-f" else argument
        if not name:
            raise PippinError("/save needs a name")
        path = self._talk.files.save(self._talk.session, name, over=flag == "-f")
        self._screen.say(f"saved in {path}")

    def _load(self, name: str) -> None:
        if not name:
            names = self._talk.files.names()
            self._screen.say(f"sessions: {', '.join(names)}" if names else "no session is saved")
            return
        session = self._talk.files.load(name)
        self._talk.files.begin_anew()
        self._talk.resume(session)
        self.show_session(name)

    def show_session(self, name: str) -> None:
        """Say where a loaded session stands."""
        session = self._talk.session
        for turn in session.turns[-2:]:
            if turn.role == "user":
                self._screen.show(Text(f"> {turn.text}"))
            else:
                is_plain = self._screen.is_plain
                self._screen.show(Text(turn.text) if is_plain else AnswerMarkdown(turn.text))
        came_from = f", last with {session.model}" if session.model else ""
        self._screen.say(f"{name}: {len(session.turns)} turns{came_from}")

    def _retry(self, argument: str) -> None:
        self.tell(self._talk.retry())

    def _edit(self, argument: str) -> None:
        self._talk.reopen()
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
        if editor:
            self._talk.draft.text = _edit_text(editor, self._talk.draft.text)
        elif not self._screen.can_edit:
            raise PippinError("this terminal cannot edit; set EDITOR to a program that can")
        if not self._screen.can_edit:
            self._screen.say("/retry sends it")

    def _tokens(self, argument: str) -> None:
        talk, backend = self._talk, self._talk.backend
        messages = talk.session.messages(talk.session.turns)
        if not messages:
            self._screen.say("0 tokens: nothing was said yet")
            return
        count = talk.run(backend.count_tokens(messages, talk.session.settings))
        usage, source = talk.last_usage, ""
        if count is None and usage is not None and usage.prompt_tokens is not None:
            count = usage.prompt_tokens + (usage.output_tokens or 0)
            source = ", as the last answer's usage says"
        if count is None:
            raise PippinError("this server neither counts tokens nor says how many it used")
        limit = backend.max_model_len
        share = f" of {limit:,} ({count / limit:.0%})" if limit else ""
        self._screen.say(f"{count:,} tokens{share}{source}")

    def _clear(self, argument: str) -> None:
        session = self._talk.session
        self._talk.files.begin_anew()
        self._talk.resume(Session(system=session.system, settings=session.settings))
        self._screen.say("a new conversation; system prompt and settings stay")

    def _quit(self, argument: str) -> None:
        raise LeaveChat


_TABLE: dict[str, tuple[Callable[[Commands, str], None], str, str]] = {
    "file": (Commands._file, "[PATH]", "send a text file along; without PATH, none"),
    "image": (Commands._image, "[PATH]", "send an image along, also from an address"),
    "audio": (Commands._audio, "[PATH]", "send a WAV or MP3 file along"),
    "system": (Commands._system, "[TEXT]", "show or set the system prompt; 'off' takes it away"),
    "model": (Commands._model, "[NAME]", "show the model, or go on with another one"),
    "set": (Commands._set, "[NAME [VALUE]]", "show or set how answers are drawn; 'default' undoes"),
    "save": (Commands._save, "[-f] NAME", "save the conversation; -f over another one"),
    "load": (Commands._load, "[NAME]", "go on with a saved one, or list them"),
    "retry": (Commands._retry, "", "have the last message answered again"),
    "edit": (Commands._edit, "", "take the last message back to change it"),
    "tokens": (Commands._tokens, "", "count the conversation's tokens"),
    "clear": (Commands._clear, "", "begin a new conversation"),
    "help": (Commands._help, "", "this list"),
    "quit": (Commands._quit, "", "leave"),
}


def _edit_text(editor: str, text: str) -> str:
    """Have the user's own editor change a text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "message.md"
        path.write_text(text, encoding="utf-8")
        try:
            subprocess.run([*shlex.split(editor), str(path)], check=True)
            return path.read_text(encoding="utf-8").strip("\n")
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise PippinError(f"the editor '{editor}' failed: {error}") from error
