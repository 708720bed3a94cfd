"""What `pippin serve` does once its settings are known: load, announce, listen, end."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pippin.core.errors import PippinError
from pippin.core.models.source import resolve_source

from .byte_size import format_bytes
from .console import format_duration, make_talk_console, set_up_logging
from .errors import INTERRUPTED
from .load_display import LoadDisplay
from .settings import ServeSettings
from .warm_prompts import WarmPrompt, read_warm_prompts

if TYPE_CHECKING:
    from pippin.core.cache.disk.stats import DiskStats
    from pippin.core.engine.async_engine import AsyncEngine
    from pippin.core.engine.client import ModelCard
    from pippin.core.engine.stats import EngineStats
    from pippin.server.config import ServerConfig


def run_serve(settings: ServeSettings) -> None:
    """Load, listen, and block until a signal ends it.

    Raises:
        PippinError: A setting is wrong, the model cannot be loaded or the port is taken.
    """
    # What can be checked is, before minutes may go into a model.
    engine_config, server_config = settings.engine_config(), settings.server_config()
    for source in filter(None, (settings.model, engine_config.draft_model)):
        resolve_source(source)
    prompts = read_warm_prompts(Path(settings.warm_prompts)) if settings.warm_prompts else []
    check_port_is_free(server_config)
    console = make_talk_console()
    set_up_logging(console, settings.log_level)
    started_at = time.monotonic()

    try:
        # mlx, transformers and uvicorn take their second; wrong settings are told before it.
        from pippin.core.engine.async_engine import AsyncEngine
        from pippin.server.metrics import Metrics
        from pippin.server.run import run_server

        with LoadDisplay(console) as display:
            engine = AsyncEngine.start(
                settings.model,
                engine_config,
                served_model_name=settings.served_model_name,
                progress=display,
            )
    except KeyboardInterrupt:
        # The engine thread may be in the middle of a read or a product that nothing can stop, and
        # an orderly exit would wait for it. Nothing half-made is left under a final name.
        console.print("interrupted")
        sys.stdout.flush()
        os._exit(INTERRUPTED)
    try:
        metrics = Metrics()
        engine.observe(metrics.observe_step)
        announce = _make_announcement(console, engine, started_at)
        if prompts:
            announce = _and_warm(announce, console, prompts, next(iter(settings.api_key), None))
        run_server(
            engine,
            server_config,
            metrics=metrics,
            on_started=announce,
            on_draining=partial(_say_goodbye, console),
        )
    except OSError as error:
        raise _port_error(server_config, error) from error
    finally:
        engine.close()


def _say_goodbye(console: Console, num_running: int) -> None:
    if num_running:
        answers = "answer" if num_running == 1 else "answers"
        console.print(f"finishing {num_running} {answers}; Ctrl-C again quits at once")


def check_port_is_free(config: ServerConfig) -> None:
    """Raises PippinError if nothing could listen there now."""
    if config.port == 0:
        return
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise _port_error(config, error) from error


def _port_error(config: ServerConfig, error: OSError) -> PippinError:
    where = f"{config.host} port {config.port}"
    if error.errno == errno.EADDRINUSE:
        return PippinError(f"{where} is in use; choose another with --port")
    return PippinError(f"cannot listen on {where}: {error.strerror or error}")


def _make_announcement(
    console: Console, engine: AsyncEngine, started_at: float
) -> Callable[[str, int], None]:
    def announce(host: str, port: int) -> None:
        console.print(startup_panel(engine.model_card, engine.stats(), base_url(host, port)))
        console.print(f"ready after {format_duration(time.monotonic() - started_at)}")

    return announce


def _and_warm(
    announce: Callable[[str, int], None],
    console: Console,
    prompts: Sequence[WarmPrompt],
    api_key: str | None,
) -> Callable[[str, int], None]:
    from .cache_warm import warm_server

    def start(host: str, port: int) -> None:
        announce(host, port)
        console.print(f"computing {len(prompts)} prompts ahead of need")
        # Daemonic: the end of the server need not wait for it.
        threading.Thread(
            target=warm_server,
            args=(base_url(host, port), api_key, prompts),
            name="pippin-warm",
            daemon=True,
        ).start()

    return start


def startup_panel(card: ModelCard, stats: EngineStats, url: str) -> Panel:
    """What somebody wants to know who has just started a server."""
    details = card.details
    capacity = details.get("kv_capacity_tokens")
    rows = {
        "model": card.model_id,
        "endpoint": f"{url}/v1",
        "context": f"{card.max_model_len:,} tokens",
        "KV cache": (
            f"{capacity:,} tokens in {format_bytes(stats.kv_cache_bytes)}"
            if capacity is not None
            else "mlx-lm's own, one request at a time"
        ),
        "on disk": _disk(stats.disk),
        "device": _and(details.get("device"), details.get("blas")),
        "attention": _attention(details.get("attention_kernel")),
        "weights": _and(details.get("quantization") or details.get("dtype")),
        "speculation": _speculation(details),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        if value:
            # As plain text: a model's name may hold brackets.
            table.add_row(name, Text(value))
    return Panel(table, title="pippin", expand=False)


def _attention(kernel: object) -> str | None:
    # A CPU has no kernel to miss.
    return None if kernel in (None, "plain") else str(kernel)


def _disk(disk: DiskStats | None) -> str | None:
    if disk is None:
        return None
    kept, most = format_bytes(disk.num_bytes), format_bytes(disk.max_bytes)
    return f"{kept} of at most {most} in {disk.folder}"


def _speculation(details: Mapping[str, object]) -> str | None:
    if details.get("speculation", "off") == "off":
        return None
    return f"{details['speculation']}, up to {details['draft_tokens']} tokens"


def _and(*facts: object) -> str:
    return ", ".join(str(fact) for fact in facts if fact is not None)


def base_url(host: str, port: int) -> str:
    """A URL that can be opened on this machine."""
    if host in ("0.0.0.0", "::"):
        host = "localhost"  # all interfaces: no address to connect to
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
