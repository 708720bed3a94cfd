"""Which records of a namespace would be found, from memory."""

from __future__ import annotations

import time

from .record import RecordKey
from .store import RecordStore

# What other processes delete is also noticed when it is fetched in vain, so this may take a while.
_RELOAD_S = 60.0


class Catalog:
    """Keys of one namespace. One thread changes it, any thread may ask.

    Attributes:
        keys: Replaced or changed key by key, so that asking needs no lock.
    """

    def __init__(self, namespace: str) -> None:
        self.keys: set[RecordKey] = set()
        self._namespace = namespace
        self._source: object = None
        self._last_row = 0
        self._data_version = 0
        self._is_stale = False
        self._reloaded_at = 0.0

    def refresh(self, store: RecordStore) -> None:
        """Notice what other processes have written, and sometimes what they have deleted."""
        index, now = store.index, time.monotonic()
        if index is None:
            # Nothing can be written here, but what there is can be read.
            if not self.keys or now > self._reloaded_at + _RELOAD_S:
                found = store.folder.files(self._namespace)
                self.keys, self._reloaded_at = {key for key, _ in found if key is not None}, now
            self._source = None
            return
        if index is not self._source:
            self._source, self._data_version, self._is_stale = index, index.data_version(), True
            self._reloaded_at = 0.0
        elif (version := index.data_version()) != self._data_version:
            self._data_version, self._is_stale = version, True
        else:
            # Nobody else wrote anything since the last look.
            if not self._is_stale:
                return
        if self._reloaded_at == 0.0 or now > self._reloaded_at + _RELOAD_S:
            rows = index.keys(self._namespace)
            self.keys = {key for _, key, _ in rows}
            self._is_stale, self._reloaded_at = False, now
        else:
            rows = index.keys(self._namespace, after=self._last_row)
            self.keys.update(key for _, key, _ in rows)
        if rows:
            self._last_row = rows[-1][0]
