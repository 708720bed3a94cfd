"""Runs the application on uvicorn, and lets it end in order.

First SIGTERM or SIGINT: new work is refused with 503, running answers end, then the process does.
Second one: the end, at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from pippin.core.engine.client import EngineClient

from .app import create_app
from .config import ServerConfig
from .drain import Drain
from .metrics import Metrics

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Time for the last bytes to leave once every handler has returned or has been given up.
_CLOSE_TIMEOUT_S = 1


def run_server(
    engine: EngineClient,
    config: ServerConfig,
    *,
    metrics: Metrics | None = None,
    on_started: Callable[[str, int], None] | None = None,
    on_draining: Callable[[int], None] | None = None,
) -> None:
    """Serve until a signal ends it. Blocks; call it on the main thread.

    The engine stays the caller's: close it after this returns.

    Args:
        engine: Running already.
        config: Where to listen, and for how long to drain.
        metrics: The one whose `observe_step` the engine has been given.
        on_started: Called on the event loop with the host and the port that listen.
        on_draining: Called on the event loop, after the first signal, with the number of requests
            that are still being answered.

    Raises:
        OSError: The address cannot be bound.
    """
    drain = Drain()
    app = create_app(engine, config, metrics=metrics, drain=drain)
    DrainingServer(
        app, config, drain, on_started=on_started, on_draining=on_draining
    ).run_until_drained()


class DrainingServer(uvicorn.Server):
    """A uvicorn server that refuses before it stops.

    uvicorn itself closes its sockets first, so that callers see a refused connection where they
    could have seen 503 and Retry-After. And sse_starlette ends all streams when it sees uvicorn's
    exit flag: here it is set only when none are left.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: ServerConfig,
        drain: Drain,
        *,
        on_started: Callable[[str, int], None] | None = None,
        on_draining: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                self._quietly(app),
                host=config.host,
                port=config.port,
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                # Longer than the pools of common clients and proxies keep an idle connection.
                timeout_keep_alive=75,
                timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
            )
        )
        self._server_config = config
        self._drain = drain
        self._on_started = on_started
        self._on_draining = on_draining
        self._draining: asyncio.Task[None] | None = None

    def run_until_drained(self) -> None:
        """Bind and serve. Blocks.

        Raises:
            OSError: The address cannot be bound.
        """
        with _bind(self._server_config) as listener:
            self.run(sockets=[listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then tell where."""
        await super().startup(sockets=sockets)
        if self._on_started is not None:
            assert sockets, "run_until_drained binds before it runs"
            host, port = sockets[0].getsockname()[:2]
            self._on_started(host, port)

    def begin_drain(self) -> None:
        """What the first signal does. Call it on the event loop; harmless twice."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain_then_exit())

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals for as long as the server runs.

        Unlike uvicorn's own this does not raise them again at the end: a drained server has done
        what it was asked to do.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._draining is None:
            self.begin_drain()
        else:
            logger.warning("server_cut running=%d", self._drain.num_running)
            self.should_exit = True
            self.force_exit = True

    def _quietly(self, app: ASGIApp) -> ASGIApp:
        """The app, but requests that the end of the server cuts off leave no traceback."""

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except asyncio.CancelledError:
                if not self.should_exit:
                    raise

        return call

    async def _drain_then_exit(self) -> None:
        self._drain.start()
        timeout_s = self._server_config.drain_timeout_s
        logger.info("drain_started running=%d timeout_s=%g", self._drain.num_running, timeout_s)
        if self._on_draining is not None:
            self._on_draining(self._drain.num_running)
        try:
            await asyncio.wait_for(self._drain.wait_idle(), timeout_s)
        except TimeoutError:
            logger.warning("drain_timed_out running=%d", self._drain.num_running)
        self.should_exit = True


def _bind(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A restart must not wait for the system to forget the last run's connections.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
    except OSError:
        listener.close()
        raise
    return listener
