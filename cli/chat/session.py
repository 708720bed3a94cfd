"""A conversation as it stands, and its file: TOML that people can read and edit."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from pippin.core.errors import ConfigError, PippinError

from .attachments import KINDS, Attachment
from .backend import Settings
from .settings import check_setting, setting_name

# What TOML does not take as it is. In a text of several lines a quote may stand alone, but neither
# before another one nor at the end.
_IN_ONE_LINE = re.compile(r'[\\"\x00-\x08\x0a-\x1f\x7f]')
_IN_LINES = re.compile(r'[\\\x00-\x08\x0b-\x1f\x7f]|"(?="|\Z)')
_KINDS: dict[type, str] = {str: "text", list: "list", dict: "table"}


@dataclass(frozen=True, slots=True)
class Turn:
    """What one of the two said.

    Attributes:
        role: ``user`` or ``assistant``.
        reasoning: What the assistant thought before; it is shown and kept, but not sent again.
    """

    role: str
    text: str
    reasoning: str = ""
    attachments: tuple[Attachment, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        """The message in the shape of OpenAI's API."""
        if not self.attachments:
            return {"role": self.role, "content": self.text}
        parts = [attachment.to_part() for attachment in self.attachments]
        if self.text:
            parts.append({"type": "text", "text": self.text})
        return {"role": self.role, "content": parts}


@dataclass(slots=True)
class Session:
    """A conversation.

    Attributes:
        model: The one that answered last, for people to know.
    """

    model: str = ""
    system: str = ""
    settings: Settings = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()

    def messages(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """What is sent to have `turns` go on."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *(turn.to_wire() for turn in turns)]


def write_session(session: Session) -> str:
    """The text of its file."""
    lines = ["# A conversation of pippin chat.", *_lines(model=session.model)]
    lines += _lines(system=session.system)
    if session.settings:
        lines += ["", tomli_w.dumps({"settings": session.settings}).rstrip()]
    for turn in session.turns:
        lines += ["", "[[turns]]", *_lines(role=turn.role, reasoning=turn.reasoning)]
        lines.append(f"text = {_quote(turn.text)}")
        for attached in turn.attachments:
            lines += ["", "[[turns.attachments]]"]
            lines += _lines(kind=attached.kind, name=attached.name)
            lines.append(f"value = {_quote(attached.value)}")
    return "\n".join(lines) + "\n"


def read_session(content: str) -> Session:
    """A session from the text of its file.

    Raises:
        PippinError: It is not one; the message says what is wrong.
    """
    try:
        table = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise PippinError(f"not valid TOML: {error}") from error
    _check_keys(table, {"model", "system", "settings", "turns"}, "the file")
    settings: Settings = {}
    for name, value in _take(table, "settings", dict, "the file").items():
        try:
            settings[setting_name(name)] = check_setting(setting_name(name), value)
        except ConfigError as error:
            raise PippinError(str(error)) from error
    return Session(
        model=_take(table, "model", str, "the file"),
        system=_take(table, "system", str, "the file"),
        settings=settings,
        turns=tuple(_turns(_take(table, "turns", list, "the file"))),
    )


def _turns(tables: list[Any]) -> Iterator[Turn]:
    for number, table in enumerate(tables, start=1):
        where = f"turn {number}"
        _check_keys(table, {"role", "text", "reasoning", "attachments"}, where)
        role = _take(table, "role", str, where)
        if role not in ("user", "assistant"):
            raise PippinError(f"{where}: the role is '{role}', not user or assistant")
        attachments = _take(table, "attachments", list, where)
        yield Turn(
            role,
            _take(table, "text", str, where),
            _take(table, "reasoning", str, where),
            tuple(_attachment(it, f"{where}, attachment") for it in attachments),
        )


def _attachment(table: Any, where: str) -> Attachment:
    _check_keys(table, {"kind", "name", "value"}, where)
    kind = next((kind for kind in KINDS if kind == table.get("kind")), None)
    if kind is None:
        raise PippinError(f"{where}: the kind is not one of {', '.join(KINDS)}")
    return Attachment(kind, *(_take(table, key, str, where) for key in ("name", "value")))


def _check_keys(table: Any, known: set[str], where: str) -> None:
    if not isinstance(table, dict):
        raise PippinError(f"{where} is no table")
    if unknown := table.keys() - known:
        raise PippinError(f"{where}: '{min(unknown)}' is not known")


def _take(table: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """What is absent is empty: somebody who writes such a file leaves out what there is not."""
    value = table.get(key, kind())
    if not isinstance(value, kind):
        raise PippinError(f"{where}: '{key}' must be a {_KINDS[kind]}")
    return value


def _lines(**texts: str) -> list[str]:
    return [f"{key} = {_quote(text)}" for key, text in texts.items() if text]


def _quote(text: str) -> str:
    if "\n" in text:
        return f'"""\n{_IN_LINES.sub(_escape, text)}"""'
    return f'"{_IN_ONE_LINE.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    return f"\\{char}" if char in '\\"' else f"\\u{ord(char):04x}"
