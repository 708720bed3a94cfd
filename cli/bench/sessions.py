"""From a workload to what is sent: sessions of one turn or more, the same for the same seed.

Each prompt begins with words of its own if it is not the workload's point that it does not, so
that no prefix cache answers for the model by accident.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pippin.core.errors import ConfigError

from .images import make_data_url, make_png
from .plan import Endpoint, Workload, WorkloadKind
from .prompt_files import FilePrompt, read_prompts, read_sharegpt
from .words import TokenScale, make_text

_UNIQUE_WORDS = 8


@dataclass(frozen=True, slots=True)
class Turn:
    """What is said before the next answer.

    Attributes:
        messages: Of a chat; other endpoints take their texts.
        label: Under which its figures are given beside those of all.
    """

    messages: tuple[dict[str, Any], ...]
    max_tokens: int | None
    label: str = ""


Session = tuple[Turn, ...]


def read_file(workload: Workload) -> list[FilePrompt]:
    """The prompts of a workload's file; none if it has no file.

    Raises:
        ConfigError: The file cannot be used.
    """
    if workload.file is None:
        return []
    is_sharegpt = workload.kind is WorkloadKind.SHAREGPT
    prompts = (read_sharegpt if is_sharegpt else read_prompts)(workload.file)
    if workload.endpoint is not Endpoint.CHAT and not all(map(_is_text, prompts)):
        raise ConfigError(
            f"{workload.file} holds conversations, which the endpoint {workload.endpoint} does not "
            "take"
        )
    return prompts


class SessionMaker:
    """Makes the sessions of one workload.

    Args:
        prompts: Of its file.
    """

    def __init__(
        self, workload: Workload, prompts: Sequence[FilePrompt], scale: TokenScale, seed: int
    ) -> None:
        self._workload = workload
        self._prompts = prompts
        self._scale = scale
        self._seed = seed
        prefix_words = scale.num_more_words(workload.prefix_tokens)
        self._prefixes = [
            make_text(random.Random(f"{seed}/prefix/{index}"), prefix_words)
            for index in range(workload.num_prefixes)
            if workload.prefix_tokens
        ]

    def make(self, part: str) -> Iterator[Session]:
        """Sessions without end.

        Args:
            part: Of the run; each has prompts of its own.
        """
        rng = random.Random(f"{self._seed}/{part}")
        order = list(self._prompts)
        number = 0
        while True:
            if number % max(1, len(order)) == 0:
                rng.shuffle(order)
            if order:
                yield (self._file_turn(rng, order[number % len(order)]),)
            else:
                turns = range(self._workload.turns)
                yield tuple(self._made_turn(rng, number, turn) for turn in turns)
            number += 1

    def _file_turn(self, rng: random.Random, prompt: FilePrompt) -> Turn:
        output = self._workload.output_tokens
        first, *others = prompt.messages
        if self._workload.unique_prefix:
            own = make_text(rng, _UNIQUE_WORDS)
            first = {**first, "content": _put_before(own, first.get("content"))}
        return Turn((first, *others), output.draw(rng) if output else prompt.max_tokens)

    def _made_turn(self, rng: random.Random, number: int, turn: int) -> Turn:
        workload = self._workload
        messages = []
        for _ in range(workload.inputs):
            wanted = workload.input_tokens.draw(rng)
            count = self._scale.num_more_words if turn or self._prefixes else self._scale.num_words
            text = make_text(rng, count(wanted))
            if self._prefixes:
                text = f"{self._prefixes[number % len(self._prefixes)]} {text}"
            content: Any = text
            if workload.images:
                pictures = [make_png(rng, *workload.image_size) for _ in range(workload.images)]
                urls = [{"url": make_data_url(png)} for png in pictures]
                # The text goes first: behind a picture that is the same, it would be cached.
                content = [{"type": "text", "text": text}]
                content += [{"type": "image_url", "image_url": url} for url in urls]
            messages.append({"role": "user", "content": content})
        label = "" if workload.turns == 1 else "later turns" if turn else "first turn"
        output = workload.output_tokens
        return Turn(tuple(messages), output.draw(rng) if output else None, label)


def encode_body(
    workload: Workload, model: str, messages: Sequence[dict[str, Any]], max_tokens: int | None
) -> bytes:
    """The JSON of a request; `Workload.ignore_eos` must be settled."""
    body: dict[str, Any] = {"model": model}
    if workload.endpoint is Endpoint.EMBEDDINGS:
        body["input"] = [message["content"] for message in messages]
    else:
        if workload.endpoint is Endpoint.CHAT:
            body["messages"] = messages
        else:
            body["prompt"] = messages[0]["content"]
        body["temperature"] = workload.temperature
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        if workload.ignore_eos:
            body["ignore_eos"] = True
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    body |= workload.extra_body
    kept = {name: value for name, value in body.items() if value is not None}
    return json.dumps(kept, ensure_ascii=False).encode()


def _put_before(words: str, content: Any) -> Any:
    if isinstance(content, list):
        return [{"type": "text", "text": words}, *content]
    return f"{words}\n\n{content or ''}"


def _is_text(prompt: FilePrompt) -> bool:
    return len(prompt.messages) == 1 and isinstance(prompt.messages[0].get("content"), str)
