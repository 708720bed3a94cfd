"""Prompts that are to be computed ahead of need: the file that holds them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pippin.core.errors import ConfigError, InvalidRequestError

_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True, slots=True)
class WarmPrompt:
    """One of them.

    Attributes:
        place: Where it stands in the file, for messages.
        path: Of the API that takes it.
        body: The request, but for the model.
    """

    place: str
    path: str
    body: dict[str, Any]


def read_warm_prompts(file: Path) -> list[WarmPrompt]:
    """Read a file of JSON, of JSON lines, or of one plain text.

    A prompt is a list of messages, an object with ``messages`` and perhaps ``tools``, both as in
    OpenAI's chat API, or an object with a text as its ``prompt``. A JSON file holds one or a list
    of them. A file that begins with neither ``[`` nor ``{`` is a text.

    Raises:
        ConfigError: It cannot be read, or something in it is no prompt; names the line.
    """
    try:
        text = file.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8: {error.reason}") from error
    if not text.strip():
        raise ConfigError(f"{file} holds no prompt")
    try:
        return [_prompt(entry, place) for place, entry in _entries(text)]
    except (ValueError, InvalidRequestError) as error:
        raise ConfigError(f"{file}, {error}") from error


def _entries(text: str) -> Iterator[tuple[str, Any]]:
    if text.lstrip()[0] not in "[{":
        yield "all of it", {"prompt": text}
        return
    try:
        whole = json.loads(text)
    except ValueError:
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number} is not JSON: {error}") from error
        return
    if isinstance(whole, dict) or _is_conversation(whole):
        yield "prompt 1", whole
    else:
        for number, entry in enumerate(whole, start=1):
            yield f"prompt {number}", entry


def _is_conversation(entry: Any) -> bool:
    return isinstance(entry, list) and all(isinstance(it, dict) and "role" in it for it in entry)


def _prompt(entry: Any, place: str) -> WarmPrompt:
    # pydantic takes its time, which nobody without such a file should wait for.
    from pippin.server.adapters.openai_chat import to_prompt
    from pippin.server.schemas.openai_chat import ChatCompletionRequest
    from pippin.server.schemas.openai_completions import CompletionRequest
    from pippin.server.schemas.wire_model import parse_body

    body = {"messages": entry} if _is_conversation(entry) else entry
    keys = set(body) if isinstance(body, dict) else set()
    try:
        if keys == {"prompt"} and isinstance(body["prompt"], str):
            parse_body(CompletionRequest, _encode(body))
            return WarmPrompt(place, _COMPLETIONS, body)
        if "messages" in keys and keys <= {"messages", "tools"}:
            # What a conversation begins with, not the opening of an answer.
            body = {**body, "add_generation_prompt": False}
            to_prompt(parse_body(ChatCompletionRequest, _encode(body)))
            return WarmPrompt(place, _CHAT, body)
    except InvalidRequestError as error:
        raise ValueError(f"{place}: {error}") from error
    raise ValueError(
        f"{place} must be a list of messages, an object with 'messages' and 'tools', or an object "
        "with a text as its 'prompt'"
    )


def _encode(body: dict[str, Any]) -> bytes:
    return json.dumps({"model": "any", **body}).encode()
