"""What a run is to do, as frozen settings. `command` checks that they go together."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class Endpoint(StrEnum):
    """What of the server is asked."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"

    @property
    def path(self) -> str:
        """Behind the version."""
        return "/chat/completions" if self is Endpoint.CHAT else f"/{self.value}"


class WorkloadKind(StrEnum):
    """Where the prompts come from."""

    SYNTHETIC = "synthetic"
    SHARED_PREFIX = "shared-prefix"
    PREFIX_HIT = "prefix-hit"
    MULTI_TURN = "multi-turn"
    PROMPTS = "prompts"
    SHAREGPT = "sharegpt"
    IMAGES = "images"

    @property
    def is_file(self) -> bool:
        """Whether prompts are read instead of made up."""
        return self in (WorkloadKind.PROMPTS, WorkloadKind.SHAREGPT)


class Arrival(StrEnum):
    """How requests of a given rate follow each other."""

    POISSON = "poisson"
    CONSTANT = "constant"


class Format(StrEnum):
    """Of the report."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MD = "md"
    HTML = "html"


@dataclass(frozen=True, slots=True)
class Length:
    """A number of tokens, drawn evenly from ``mean - spread`` to ``mean + spread``."""

    mean: int
    spread: int = 0

    def draw(self, rng: random.Random) -> int:
        """One of them."""
        return rng.randint(self.mean - self.spread, self.mean + self.spread)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is asked.

    Attributes:
        input_tokens: Of a prompt without the shared prefix; in prompts of a file unused.
        output_tokens: ``None`` leaves the end to the model.
        prefix_tokens: Length of a shared prefix.
        num_prefixes: How many prefixes there are, in turn.
        turns: Of a conversation.
        file: Of prompts.
        unique_prefix: Whether words of its own go before each prompt of a file.
        images: So many in each request.
        image_size: Width and height in pixels.
        inputs: Texts in one request for embeddings.
        ignore_eos: ``None`` asks the server whether it knows it, for prompts that are made up.
        extra_body: Further fields of a body; ``None`` as value takes a field out.
    """

    kind: WorkloadKind
    endpoint: Endpoint
    input_tokens: Length
    output_tokens: Length | None
    prefix_tokens: int
    num_prefixes: int
    turns: int
    file: Path | None
    unique_prefix: bool
    images: int
    image_size: tuple[int, int]
    inputs: int
    ignore_eos: bool | None
    temperature: float
    extra_body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One step of a sweep: so many at once, or so many each second."""

    concurrency: int | None = None
    request_rate: float | None = None
    arrival: Arrival | None = None

    def to_json(self) -> dict[str, Any]:
        """What is given of it."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def label(self) -> str:
        """The number alone."""
        return f"{self.concurrency or self.request_rate:g}"

    @property
    def title(self) -> str:
        """For a sentence."""
        return f"{self.unit} {self.label}"

    @property
    def unit(self) -> str:
        """What the number counts."""
        return "concurrency" if self.concurrency else "request rate"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """A whole run.

    Attributes:
        num_requests: At each level; ``None`` is for `duration_s` alone, or see `requests_at`.
        slo: Limits in milliseconds by ``ttft``, ``tpot`` or ``e2e``.
    """

    url: str
    api_key: str | None
    model: str | None
    workload: Workload
    levels: tuple[Level, ...]
    num_requests: int | None
    duration_s: float | None
    warmup: int
    timeout_s: float
    slo: Mapping[str, float]
    seed: int

    def requests_at(self, level: Level) -> int | None:
        """How many requests a level has; ``None`` for as many as its duration allows."""
        if self.num_requests is not None or self.duration_s is not None:
            return self.num_requests
        return 50 if level.concurrency is None else max(16, 8 * level.concurrency)
