"""What was measured about this machine at an earlier load, kept on disk.

Timing kernels takes seconds, and the answer changes only with the device and with mlx. One small
file holds one measurement, so that processes need no lock and damage costs one measurement.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..backend import mx
from ..folders import cache_folder

logger = logging.getLogger(__name__)

_FORMAT_VERSION = 1


class Measurements:
    """Measurements made on one device with one version of mlx."""

    def __init__(self, folder: Path, *, device: str, mlx_version: str) -> None:
        self._folder = folder
        self._identity = {
            "version": _FORMAT_VERSION,
            "device": device,
            "mlx": mlx_version,
        }

    @classmethod
    def of_this_machine(cls) -> Measurements:
        """Those of the default device, in pippin's cache folder."""
        info = mx.device_info()
        return cls(
            cache_folder() / "measurements",
            device=str(info.get("device_name", info.get("architecture", "unknown"))),
            mlx_version=importlib.metadata.version("mlx"),
        )

    def get(self, kind: str, key: str, measure: Callable[[], Any]) -> Any:
        """What an earlier `measure` gave, else what it gives now.

        A file that is damaged, or was written by another version, is measured anew. Where nothing
        can be written, nothing is kept.

        Args:
            kind: What was measured; part of the file's name.
            key: On what, with everything that the result depends on.
            measure: Gives JSON: anything else does not come back as it was.
        """
        identity = {**self._identity, "kind": kind, "key": key}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        path = self._folder / f"{kind}-{digest[:32]}.json"
        try:
            record = json.loads(path.read_bytes())
            if record["identity"] == identity:
                return record["value"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.debug("measuring %s of %s: %s", kind, key, type(error).__name__)
        value = measure()
        try:
            _write(path, json.dumps({"identity": identity, "value": value}))
        except OSError as error:
            logger.debug("cannot keep a measurement: %s", error)
        return value


def _write(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
