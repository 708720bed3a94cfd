"""Frozen engine settings, in units, checked once at birth."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ConfigError

_KV_BITS = (8, 4)


@dataclass(frozen=True, slots=True)
class KVBits:
    """Bits of a number of keys and of values."""

    keys: int
    values: int

    @classmethod
    def parse(cls, text: str) -> KVBits | None:
        """Read ``8``, ``4``, keys and values apart such as ``8,4``, or ``off``.

        Raises:
            ConfigError: It is none of these.
        """
        if text == "off":
            return None
        parts = [part.strip() for part in text.split(",")]
        if len(parts) > 2 or not all(part in map(str, _KV_BITS) for part in parts):
            raise ConfigError(
                f"kv-bits must be 8, 4, two of these as in '8,4', or off; got '{text}'"
            )
        return cls(int(parts[0]), int(parts[-1]))

    def __str__(self) -> str:
        return str(self.keys) if self.keys == self.values else f"{self.keys},{self.values}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """How the paged KV cache is cut up and how large it may grow.

    Attributes:
        block_size: Tokens a block holds. A power of two.
        max_bytes: Memory for keys and values over all layers, in bytes; ``None`` sizes it from
            the device's memory, the weights and the measured activation peak.
        kv_bits: Of keys and values in layers that keep all of the past; ``None`` for those that
            the model gives them.
        disk_folder: Where blocks go that the memory has no room for; ``None`` for nowhere.
        disk_bytes: The most that may lie there, of all models together; ``None`` for a modest share
            of the disk's free space.
    """

    block_size: int = 32
    max_bytes: int | None = None
    kv_bits: KVBits | None = None
    disk_folder: Path | None = None
    disk_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.block_size <= 0 or self.block_size & (self.block_size - 1):
            raise ConfigError(f"block-size must be a power of two, got {self.block_size}")
        if self.max_bytes is not None and self.max_bytes <= 0:
            raise ConfigError(f"kv-cache-memory must be positive, got {self.max_bytes} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How much runs at once.

    Attributes:
        max_num_seqs: Most sequences that run together.
        prefill_chunk: Most prompt tokens of one step when nobody decodes.
        mixed_prefill_chunk: The same while other sequences decode; never above `prefill_chunk`.
            Usually it is less: as much as does not hold them up for long.
        max_queue: Most requests that may wait; the next one is refused.
    """

    max_num_seqs: int = 64
    prefill_chunk: int = 2048
    mixed_prefill_chunk: int = 2048
    max_queue: int = 1024

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "prefill_chunk", "mixed_prefill_chunk", "max_queue"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )


MAX_DRAFT_TOKENS = 15


class Speculation(enum.StrEnum):
    """Who guesses tokens ahead, for one step to verify several."""

    OFF = "off"
    NGRAM = "ngram"
    DRAFT = "draft"
    MTP = "mtp"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All settings of one engine.

    Attributes:
        max_model_len: Most tokens of prompt and answer together; ``None`` takes the model's own
            limit, cut down to what the KV cache can hold.
        speculation: Who guesses tokens ahead.
        draft_tokens: Most tokens that are guessed for one sequence at a time.
        draft_model: Source of what guesses, for `Speculation.DRAFT`, and for `Speculation.MTP` if
            that is not among the model's own tensors.
        tool_call_parser: Dialect of tool calls; ``None`` for what the chat template tells, ``off``
            for none.
        reasoning_parser: The same of reasoning.
    """

    max_model_len: int | None = None
    speculation: Speculation = Speculation.OFF
    draft_tokens: int = 8
    draft_model: str | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    def __post_init__(self) -> None:
        if self.max_model_len is not None and self.max_model_len < 1:
            raise ConfigError(f"max-model-len must be at least 1, got {self.max_model_len}")
        if not 1 <= self.draft_tokens <= MAX_DRAFT_TOKENS:
            raise ConfigError(
                f"draft-tokens must be from 1 to {MAX_DRAFT_TOKENS}, got {self.draft_tokens}"
            )
        if self.speculation is Speculation.DRAFT and self.draft_model is None:
            raise ConfigError("speculation 'draft' needs a draft-model")
        takes_model = self.speculation in (Speculation.DRAFT, Speculation.MTP)
        if not takes_model and self.draft_model is not None:
            raise ConfigError(
                "draft-model goes with speculation 'draft' or 'mtp', "
                f"not '{self.speculation.value}'"
            )
