"""What the handlers of one app share."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import cast

from prometheus_client import CollectorRegistry
from starlette.requests import Request

from pippin.core.engine.client import EngineClient
from pippin.core.errors import ModelNotFoundError

from .adapters.reply import ReplyHead
from .config import ServerConfig
from .drain import Drain
from .metrics import Metrics
from .running import RunningReplies


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One engine, seen by its endpoints."""

    engine: EngineClient
    config: ServerConfig
    metrics: Metrics
    registry: CollectorRegistry
    drain: Drain
    version: str
    running: RunningReplies = field(default_factory=RunningReplies)

    def check_model(self, name: str) -> None:
        """Make sure that ``name`` means the model that is served.

        Raises:
            ModelNotFoundError: It does not.
        """
        card = self.engine.model_card
        if name == card.model_id or name in card.aliases:
            return
        if not any(fnmatchcase(name, alias) for alias in self.config.aliases):
            raise ModelNotFoundError(name)

    def make_reply_head(self, prefix: str, *, separator: str = "-") -> ReplyHead:
        """A new reply's identity, for example of the form ``chatcmpl-...``."""
        return ReplyHead(
            reply_id=f"{prefix}{separator}{uuid.uuid4().hex}",
            created_unix=int(time.time()),
            model=self.engine.model_card.model_id,
            system_fingerprint=f"pippin-{self.version}",
        )


def service_of(request: Request) -> Service:
    """The service of the app that got the request."""
    return cast("Service", request.app.state.service)
