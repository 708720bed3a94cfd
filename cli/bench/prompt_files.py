"""Prompts of files: lines of text, JSON lines, and conversations as ShareGPT has them.

Source: the ShareGPT files on the Hugging Face hub, ``conversations`` of ``from`` and ``value``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pippin.core.errors import ConfigError

_ASKING = ("human", "user")


@dataclass(frozen=True, slots=True)
class FilePrompt:
    """One prompt: messages, which for other endpoints than chat are a single user's."""

    messages: tuple[dict[str, Any], ...]
    max_tokens: int | None = None


def file_digest(path: Path) -> str:
    """SHA-256 of what is in a file, which says whether two runs read the same."""
    return hashlib.sha256(_read(path)).hexdigest()


def read_prompts(path: Path) -> list[FilePrompt]:
    """One prompt a line: text; in a ``.jsonl``, an object with ``prompt`` or ``messages``, and
    perhaps ``max_tokens``.

    Raises:
        ConfigError: The file cannot be read, a line is something else, or there is none.
    """
    is_json = path.suffix in (".jsonl", ".ndjson")
    prompts = [
        _from_object(_parse(line, where), where) if is_json else _from_text(line)
        for number, line in enumerate(_text(path).splitlines(), start=1)
        for where in (f"{path} line {number}",)
        if line.strip()
    ]
    return _some(prompts, path)


def read_sharegpt(path: Path) -> list[FilePrompt]:
    """The first question of each conversation of a JSON list.

    Raises:
        ConfigError: As for `read_prompts`.
    """
    entries = _parse(_text(path), str(path))
    if not isinstance(entries, list):
        raise ConfigError(f"{path} must hold a JSON list of conversations")
    return _some(list(_first_questions(entries)), path)


def _first_questions(entries: list[Any]) -> Iterator[FilePrompt]:
    for entry in entries:
        turns = entry.get("conversations", entry.get("messages")) if isinstance(entry, dict) else ()
        for turn in turns if isinstance(turns, list) else ():
            if isinstance(turn, dict) and turn.get("from", turn.get("role")) in _ASKING:
                text = turn.get("value", turn.get("content"))
                if isinstance(text, str) and text.strip():
                    yield _from_text(text)
                break


def _from_object(entry: Any, where: str) -> FilePrompt:
    if isinstance(entry, dict):
        prompt, messages = entry.get("prompt"), entry.get("messages")
        max_tokens = entry.get("max_tokens")
        if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
            raise ConfigError(f"{where}: 'max_tokens' must be a positive whole number")
        if isinstance(prompt, str) and messages is None:
            return FilePrompt(_from_text(prompt).messages, max_tokens)
        is_list = isinstance(messages, list) and all(isinstance(part, dict) for part in messages)
        if prompt is None and messages and is_list:
            return FilePrompt(tuple(messages), max_tokens)
    raise ConfigError(f"{where}: it must be an object with either 'prompt' or 'messages'")


def _from_text(text: str) -> FilePrompt:
    return FilePrompt(({"role": "user", "content": text},))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is not valid JSON: {error}") from error


def _text(path: Path) -> str:
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _some(prompts: list[FilePrompt], path: Path) -> list[FilePrompt]:
    if not prompts:
        raise ConfigError(f"{path} holds no prompts")
    return prompts
