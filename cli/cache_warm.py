"""`pippin cache warm`, and the same for a server that has just started."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from pippin.core.errors import ConfigError, PippinError

from .cache_run import progress_bar
from .console import make_data_console, make_talk_console, set_up_logging
from .load_display import LoadDisplay
from .settings import ServeSettings
from .warm_prompts import WarmPrompt, read_warm_prompts

logger = logging.getLogger(__name__)

# Of silence: a long prompt may take minutes, and nobody waits for it.
_TIMEOUT_S = 3600.0
# How often to see whether all is written.
_LOOK_S = 0.05


@dataclass(slots=True)
class Warmed:
    """What came of it.

    Attributes:
        num_cached: Of the tokens, those that were there already.
        problems: Prompts that the server refused, and why.
    """

    num_prompts: int = 0
    num_tokens: int = 0
    num_cached: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"warmed {self.num_prompts:,} prompts, {self.num_tokens:,} tokens, of which "
            f"{self.num_cached:,} were there already"
        )


async def warm(
    client: httpx.AsyncClient,
    prompts: Sequence[WarmPrompt],
    on_progress: Callable[[int, int], None],
) -> Warmed:
    """Have a server compute prompts, one after another.

    Raises:
        httpx.HTTPError: It does not answer, or ends in the middle of it.
    """
    warmed = Warmed()
    listed = await client.get("/v1/models")
    model = listed.raise_for_status().json()["data"][0]["id"]
    for number, prompt in enumerate(prompts):
        on_progress(number, len(prompts))
        reply = await client.post(
            prompt.path, json={"model": model, "max_tokens": 1, **prompt.body}
        )
        if reply.status_code == httpx.codes.BAD_REQUEST:
            warmed.problems.append(f"{prompt.place}: {reply.json()['error']['message']}")
            continue
        usage = reply.raise_for_status().json()["usage"]
        warmed.num_prompts += 1
        warmed.num_tokens += usage["prompt_tokens"]
        warmed.num_cached += usage["prompt_tokens_details"]["cached_tokens"]
    on_progress(len(prompts), len(prompts))
    return warmed


def warm_server(url: str, api_key: str | None, prompts: Sequence[WarmPrompt]) -> None:
    """Warm a server that has just started, and log how it went. For a thread of its own."""
    started_at = time.monotonic()
    try:
        warmed = asyncio.run(_warm(url, api_key, prompts, lambda done, total: None))
    except httpx.HTTPError as error:
        logger.info("warm_prompts_ended error=%s", error)  # as when the server ends first
        return
    for problem in warmed.problems:
        logger.warning("warm_prompt_refused %s", problem)
    logger.info("%s seconds=%.1f", warmed, time.monotonic() - started_at)


def run_warm_url(url: str, file: Path, *, api_key: str | None, as_json: bool) -> None:
    """Warm a running server.

    Raises:
        PippinError: Nobody answers, or a prompt is refused.
    """
    prompts = read_warm_prompts(file)
    try:
        with progress_bar("warming") as on_progress:
            warmed = asyncio.run(_warm(url, api_key, prompts, on_progress))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
        raise PippinError(f"{url} did not compute the prompts: {error}") from error
    _tell(warmed, as_json=as_json)


def run_warm_model(settings: ServeSettings, file: Path, *, as_json: bool) -> None:
    """Load a model, and have it compute prompts into the folder of the disk cache.

    Raises:
        PippinError: The model cannot be loaded, or a prompt is refused.
    """
    prompts, config = read_warm_prompts(file), settings.engine_config()
    if config.cache.disk_folder is None:
        raise ConfigError("kv-disk-size is 'off', so nothing would be left of what is computed")
    console = make_talk_console()
    set_up_logging(console, "warning")
    from pippin.core.engine.async_engine import AsyncEngine
    from pippin.server.app import create_app
    from pippin.server.config import ServerConfig

    with LoadDisplay(console) as display:
        engine = AsyncEngine.start(settings.model, config, progress=display)
    try:
        if engine.stats().disk is None:
            raise PippinError(f"{settings.model} cannot be kept on the disk")
        app: Any = create_app(engine, ServerConfig())
        transport = httpx.ASGITransport(app)
        with progress_bar("warming") as on_progress:
            warmed = asyncio.run(_warm("http://pippin", None, prompts, on_progress, transport))
        while (disk := engine.stats().disk) is not None and disk.queued_bytes:
            time.sleep(_LOOK_S)
    finally:
        engine.close()
    _tell(warmed, as_json=as_json)


async def _warm(
    url: str,
    api_key: str | None,
    prompts: Sequence[WarmPrompt],
    on_progress: Callable[[int, int], None],
    transport: httpx.AsyncBaseTransport | None = None,
) -> Warmed:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx.AsyncClient(
        transport=transport, base_url=url, headers=headers, timeout=_TIMEOUT_S, trust_env=False
    ) as client:
        return await warm(client, prompts, on_progress)


def _tell(warmed: Warmed, *, as_json: bool) -> None:
    if as_json:
        print(
            json.dumps(
                {
                    "prompts": warmed.num_prompts,
                    "tokens": warmed.num_tokens,
                    "cached": warmed.num_cached,
                    "refused": warmed.problems,
                },
                indent=2,
            )
        )
    else:
        make_data_console().print(str(warmed))
    if warmed.problems:
        raise PippinError("refused: " + "; ".join(warmed.problems))
