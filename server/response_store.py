"""Responses and conversations that callers may come back to, in one SQLite file.

All work on the file happens in one thread, in the order of the calls: what was kept is found by
whoever asks next, and the event loop never waits for a disk. The file may be deleted at any time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pippin.core.errors import ConfigError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, used_at REAL NOT NULL, num_bytes INTEGER NOT NULL, body BLOB NOT NULL
)"""
# Running sums from the last used one back: those that do not fit any more are the oldest.
_EVICT = """
DELETE FROM responses WHERE used_at < :oldest OR id IN (
    SELECT id FROM (
        SELECT id, row_number() OVER recent AS place, sum(num_bytes) OVER recent AS total
        FROM responses WINDOW recent AS (ORDER BY used_at DESC, rowid DESC)
    ) WHERE place > :max_responses OR total > :max_bytes
)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A response and what it answers.

    Attributes:
        response: As it went out.
        items: Input of this request alone, as the API shows items.
    """

    response: dict[str, Any]
    items: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredConversation:
    """A conversation and all that is in it.

    Attributes:
        conversation: As the API shows it.
        items: As the API shows items, oldest first; no two have the same id.
    """

    conversation: dict[str, Any]
    items: list[dict[str, Any]]

    def with_more(self, items: Sequence[dict[str, Any]]) -> StoredConversation:
        """The conversation with ``items`` at its end."""
        return replace(self, items=[*self.items, *items])


Change = Callable[[StoredConversation], StoredConversation]


class ResponseStore:
    """Keeps the last used responses and conversations, which share the limits.

    Args:
        path: The file; made if it is not there.
        max_responses: Most that are kept.
        max_bytes: Most bytes that they take together, as JSON.
        ttl_s: Seconds after their last use in which they can still be used.

    Raises:
        ConfigError: The file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_responses: int = 10_000,
        max_bytes: int = 256 * 1024**2,
        ttl_s: float = 30 * 86_400,
    ) -> None:
        self._path = path
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="response-store")
        try:
            with self._connection():
                pass
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"response-store {path}: {error}; name another file, or 'off'"
            ) from error

    def keep(self, stored: StoredResponse) -> None:
        """Save it soon. Returns at once; a failure goes to the log."""
        self._save_soon(stored.response["id"], lambda: self._save(stored))

    def keep_items(self, conversation_id: str, items: Sequence[dict[str, Any]]) -> None:
        """Soon add items to a conversation, if it is still there. Otherwise as `keep`."""
        self._save_soon(
            conversation_id, lambda: self._change(conversation_id, lambda it: it.with_more(items))
        )

    async def load(self, response_id: str) -> StoredResponse | None:
        """One response, or ``None`` if it is not there (any more)."""
        chain = await self._run(lambda: self._load_chain(response_id, 1))
        return chain[0] if chain else None

    async def load_chain(self, response_id: str) -> list[StoredResponse] | None:
        """A response after all that it follows, oldest first; ``None`` if one is missing."""
        return await self._run(lambda: self._load_chain(response_id, None))

    async def save(self, stored: StoredConversation) -> None:
        """Save a new conversation."""
        await self._run(lambda: self._save(stored))

    async def load_conversation(
        self, conversation_id: str, change: Change | None = None
    ) -> StoredConversation | None:
        """One conversation, or ``None`` if it is not there (any more).

        Args:
            change: What to make of it first, with nothing else in between. Called in the store's
                thread; an error that it raises leaves all as it was.
        """
        return await self._run(lambda: self._change(conversation_id, change))

    async def delete(self, stored_id: str) -> bool:
        """Forget a response or a conversation; whether it was there."""
        return await self._run(lambda: self._delete(stored_id))

    async def _run(self, job: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction: cheap enough, and nothing to close at the end."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch(mode=0o600)  # it holds what people said; SQLite's side files follow it
        with closing(sqlite3.connect(self._path, timeout=5)) as connection, connection:
            # Another server may use the same file.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_SCHEMA)
            yield connection

    def _save_soon(self, stored_id: str, job: Callable[[], object]) -> None:
        def run() -> None:
            try:
                job()
            except Exception:
                logger.exception("response_not_stored id=%s", stored_id)

        self._thread.submit(run)

    def _save(self, stored: StoredResponse | StoredConversation) -> None:
        with self._connection() as connection:
            self._write(connection, stored)

    def _change(self, conversation_id: str, change: Change | None) -> StoredConversation | None:
        with self._connection() as connection:
            stored = self._use(connection, conversation_id, time.time())
            if not isinstance(stored, StoredConversation):
                return None
            if change is not None:
                stored = change(stored)
                self._write(connection, stored)
            return stored

    def _load_chain(self, response_id: str, max_links: int | None) -> list[StoredResponse] | None:
        chain: list[StoredResponse] = []
        now = time.time()
        following: str | None = response_id
        with self._connection() as connection:
            while following is not None and (max_links is None or len(chain) < max_links):
                # All links count as used, or the head of a long conversation would be lost.
                stored = self._use(connection, following, now)
                if not isinstance(stored, StoredResponse):
                    return None
                chain.append(stored)
                following = stored.response["previous_response_id"]
        return chain[::-1]

    def _delete(self, stored_id: str) -> bool:
        with self._connection() as connection:
            deleted = connection.execute("DELETE FROM responses WHERE id = ?", (stored_id,))
            return deleted.rowcount > 0

    def _use(
        self, connection: sqlite3.Connection, stored_id: str, now: float
    ) -> StoredResponse | StoredConversation | None:
        """What has this id. From here to its end the transaction is the only one that writes."""
        [body] = connection.execute(
            "UPDATE responses SET used_at = ? WHERE id = ? AND used_at >= ? RETURNING body",
            (now, stored_id, now - self._ttl_s),
        ).fetchone() or [None]
        if body is None:
            return None
        fields = json.loads(body)
        return (StoredResponse if "response" in fields else StoredConversation)(**fields)

    def _write(
        self, connection: sqlite3.Connection, stored: StoredResponse | StoredConversation
    ) -> None:
        shown = stored.response if isinstance(stored, StoredResponse) else stored.conversation
        body = json.dumps(asdict(stored), separators=(",", ":")).encode()
        now = time.time()
        limits = {
            "oldest": now - self._ttl_s,
            "max_responses": self._max_responses,
            "max_bytes": self._max_bytes,
        }
        row = (shown["id"], now, len(body), body)
        connection.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?)", row)
        connection.execute(_EVICT, limits)
