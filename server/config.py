"""Frozen settings of the HTTP side, in units, checked once at birth.

The model's own names are not here: they come from the engine's `ModelCard`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pippin.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the server listens and what it lets in.

    Attributes:
        host: Address to bind.
        port: TCP port; 0 lets the system pick one.
        api_keys: Keys that open the API, by ``Authorization: Bearer`` or ``x-api-key``; none
            leaves it open to everyone who can reach the port.
        aliases: Further names that mean the model; ``*`` and ``?`` stand for any text and any
            character, so that ``*`` alone makes it the model for every name.
        response_store: File that keeps responses for those who come back to them; ``None`` keeps
            none.
        max_body_bytes: Largest request body.
        sse_keepalive_s: Seconds between comments that keep a stream's connection alive while
            nothing else is sent; 0 sends none.
        drain_timeout_s: Seconds that running requests may take to end after the first signal.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    response_store: Path | None = None
    max_body_bytes: int = 32 * 1024**2
    sse_keepalive_s: float = 10.0
    drain_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be between 0 and 65535, got {self.port}")
        # A key is compared with a header, and headers are ASCII without borders of white space.
        if any(not key.isascii() or not key.strip() or key != key.strip() for key in self.api_keys):
            raise ConfigError("api-key must be non-empty ASCII without surrounding white space")
        if not all(self.aliases):
            raise ConfigError("alias must not be empty")
        if self.max_body_bytes < 1:
            raise ConfigError(f"max_body_bytes must be at least 1, got {self.max_body_bytes}")
        if not 0 <= self.sse_keepalive_s < float("inf"):
            raise ConfigError(f"sse_keepalive_s must not be negative, got {self.sse_keepalive_s}")
        if not 0 <= self.drain_timeout_s < float("inf"):
            raise ConfigError(f"drain_timeout_s must not be negative, got {self.drain_timeout_s}")
