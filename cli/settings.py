"""Settings of `pippin serve`: flag over environment over file over default, into frozen configs.

`ServeSettings` is the one place where a setting is named and described.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pippin.core.config import (
    MAX_DRAFT_TOKENS,
    CacheConfig,
    EngineConfig,
    KVBits,
    SchedulerConfig,
    Speculation,
)
from pippin.core.errors import ConfigError
from pippin.core.folders import cache_folder
from pippin.server.config import ServerConfig

from .byte_size import format_bytes, parse_bytes, parse_disk_bytes
from .setting import About, collect_settings

_SERVER, _ENGINE = ServerConfig(), EngineConfig()
_CACHE, _SCHEDULER = _ENGINE.cache, _ENGINE.scheduler
_DAY_S = 86_400


class LogLevel(StrEnum):
    """How much the log says."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """All settings of one `pippin serve`; a field is a flag, a variable and a key of the file.

    Sizes are in bytes and times in seconds. ``None`` stands for a default that is no fixed value.
    A size of 0 on the disk is off.
    """

    model: Annotated[
        str,
        About("What to serve: 'demo', a folder, a .gguf file, or a hub id like org/name.", "MODEL"),
    ] = "demo"
    host: Annotated[
        str,
        About(
            "Address to listen on.",
            "ADDRESS",
            more="0.0.0.0 and :: listen on all interfaces; set an API key then.",
        ),
    ] = _SERVER.host
    port: Annotated[
        int, About("TCP port; 0 takes a free one.", "PORT", minimum=0, maximum=65535)
    ] = _SERVER.port
    served_model_name: Annotated[
        str | None,
        About(
            "Name of the model on the wire.",
            "NAME",
            default="its hub id, or its folder's name",
            example="my-model",
        ),
    ] = None
    alias: Annotated[
        tuple[str, ...],
        About(
            "Another name of the model, in which * stands for any text; * alone takes every name.",
            "NAME",
            more="With claude-* Anthropic's clients need no setting of their own.",
        ),
    ] = _SERVER.aliases
    max_model_len: Annotated[
        int | None,
        About(
            "Most tokens of prompt and answer together.",
            "TOKENS",
            default="what model and memory allow",
            minimum=1,
            example=8192,
        ),
    ] = None
    max_num_seqs: Annotated[
        int, About("Most answers that are generated together.", "COUNT", minimum=1)
    ] = _SCHEDULER.max_num_seqs
    kv_cache_memory: Annotated[
        int | None,
        About(
            "Memory for keys and values, like 2GiB (1024s) or 500MB (1000s).",
            "SIZE",
            default="what the device's memory leaves beside weights and activations",
            parse=parse_bytes,
            example="2GiB",
        ),
    ] = _CACHE.max_bytes
    kv_bits: Annotated[
        str,
        About(
            "Bits of keys and values in layers that keep all of the past: 8, 4, or keys and values "
            "apart, like 8,4; 'off' keeps what the model gives.",
            "BITS",
            more="With fewer bits the same memory holds more tokens, and answers are less exact; "
            "keys suffer more than values do. Sliding windows and recurrent layers stay as they "
            "are. A model that it cannot be done to is refused.",
            parse=str,  # 8 is as good as "8"
        ),
    ] = "off"
    block_size: Annotated[
        int,
        About(
            "Tokens in a block of the KV cache; a power of two.",
            "TOKENS",
            minimum=1,
            more="Smaller blocks share more, larger ones cost less to look after.",
        ),
    ] = _CACHE.block_size
    kv_disk_dir: Annotated[
        str | None,
        About(
            "Folder that keeps keys and values for later prompts and later starts; several servers "
            "may share it.",
            "FOLDER",
            more="Models and settings may differ: nobody finds what is not theirs. If it cannot be "
            "written, the server says so and goes on. What lies there tells what was said, and "
            "only its owner may read it. Deleting it is always safe.",
            default="kv in pippin's cache folder",
            example="~/kv",
        ),
    ] = None
    kv_disk_size: Annotated[
        int | None,
        About(
            "The most that this folder may hold, like 20GiB; 'off' keeps nothing on the disk.",
            "SIZE",
            more="It counts for all servers together; what was not used for the longest time goes "
            "first.",
            default="a tenth of the disk's free space, 16 GiB at most",
            parse=parse_disk_bytes,
            example="20GiB",
        ),
    ] = None
    warm_prompts: Annotated[
        str | None,
        About(
            "Prompts to compute once the server is ready, so that those that begin like them are "
            "quick: a file of JSON, JSON lines or text, as `pippin cache warm` takes it.",
            "FILE",
            default="none",
            example="~/prompts.jsonl",
        ),
    ] = None
    prefill_chunk: Annotated[
        int,
        About(
            "Most prompt tokens computed in one step.",
            "TOKENS",
            minimum=1,
            more="Smaller keeps running answers smoother while a long prompt comes in, larger "
            "computes the prompt sooner.",
        ),
    ] = _SCHEDULER.prefill_chunk
    max_queue: Annotated[
        int, About("Most requests that may wait; further ones are refused.", "COUNT", minimum=1)
    ] = _SCHEDULER.max_queue
    speculation: Annotated[
        Speculation | None,
        About(
            "Who guesses tokens ahead, for one step to check several: nobody, the text itself "
            "(ngram), a draft model, or a head that was trained with the model (mtp). Used only "
            "while it pays.",
            more='Answers stay the same. A request opts out with "speculation": false.',
            default="off, or draft with a draft model",
            example="ngram",
        ),
    ] = None
    draft_tokens: Annotated[
        int,
        About(
            "Most tokens guessed for one answer at a time.",
            "COUNT",
            minimum=1,
            maximum=MAX_DRAFT_TOKENS,
        ),
    ] = _ENGINE.draft_tokens
    draft_model: Annotated[
        str | None,
        About(
            "A small model with the same tokens that guesses ahead: a folder, a .gguf file, or a "
            "hub id.",
            "MODEL",
            more="With speculation mtp: what holds the head, where the model itself does not. It "
            "takes memory beside the model, and a share of the KV cache.",
            default="none",
            example="org/small",
        ),
    ] = None
    tool_call_parser: Annotated[
        str | None,
        About(
            "How the model writes tool calls, such as hermes, llama3 or mistral; 'off' looks for "
            "none.",
            "NAME",
            default="what its chat template tells",
            example="hermes",
        ),
    ] = None
    reasoning_parser: Annotated[
        str | None,
        About(
            "How the model marks what it thinks, such as think or mistral; 'off' takes all for the "
            "answer.",
            "NAME",
            default="what its chat template tells",
            example="think",
        ),
    ] = None
    response_store: Annotated[
        str | None,
        About(
            "Where responses are kept for callers that come back to them; 'off' keeps none.",
            "FILE",
            more="These are the callers of /v1/responses. The last used ones stay: up to 10,000, "
            "256 MiB and 30 days.",
            default="responses.sqlite in pippin's cache folder",
            example="~/responses.sqlite",
        ),
    ] = None
    max_body_size: Annotated[
        int,
        About(
            "Largest body of a request, like 32MiB; larger ones are refused.",
            "SIZE",
            parse=parse_bytes,
            default="32MiB",
        ),
    ] = _SERVER.max_body_bytes
    sse_keepalive: Annotated[
        float,
        About(
            "Seconds after which a stream that has nothing to say sends a comment, for proxies not "
            "to close it; 0 sends none.",
            "SECONDS",
            minimum=0,
            maximum=_DAY_S,
        ),
    ] = _SERVER.sse_keepalive_s
    drain_timeout: Annotated[
        float,
        About(
            "Seconds that running answers may take to end after the first signal to stop.",
            "SECONDS",
            minimum=0,
            maximum=_DAY_S,
        ),
    ] = _SERVER.drain_timeout_s
    log_level: Annotated[LogLevel, About("How much the log says.")] = LogLevel.INFO
    api_key: Annotated[
        tuple[str, ...],
        About(
            "Key that callers must show.",
            "KEY",
            more="They do as a bearer token or in x-api-key; without keys everybody who can reach "
            "the port is let in. A key on a command line can be seen by every user of the "
            "machine: prefer the variable or the file.",
        ),
    ] = _SERVER.api_keys

    def engine_config(self) -> EngineConfig:
        """Raises ConfigError if a value is out of range, or two do not go together."""
        # Only here: the other commands need not wait for it.
        from pippin.core.cache.disk.tier import MIN_MAX_BYTES

        if self.kv_disk_size is not None and not (
            self.kv_disk_size == 0 or self.kv_disk_size >= MIN_MAX_BYTES
        ):
            least = format_bytes(MIN_MAX_BYTES)
            raise ConfigError(f"kv-disk-size must be 'off' or at least {least}")
        default = Speculation.OFF if self.draft_model is None else Speculation.DRAFT
        speculation = default if self.speculation is None else Speculation(self.speculation)
        is_off = speculation is Speculation.OFF  # for a while, with a draft model in the file
        return EngineConfig(
            max_model_len=self.max_model_len,
            speculation=speculation,
            draft_tokens=self.draft_tokens,
            draft_model=None if is_off else self.draft_model,
            tool_call_parser=self.tool_call_parser,
            reasoning_parser=self.reasoning_parser,
            cache=CacheConfig(
                block_size=self.block_size,
                max_bytes=self.kv_cache_memory,
                kv_bits=KVBits.parse(self.kv_bits),
                disk_folder=None if self.kv_disk_size == 0 else disk_folder(self.kv_disk_dir),
                disk_bytes=self.kv_disk_size or None,
            ),
            scheduler=SchedulerConfig(
                max_num_seqs=self.max_num_seqs,
                prefill_chunk=self.prefill_chunk,
                mixed_prefill_chunk=min(self.prefill_chunk, _SCHEDULER.mixed_prefill_chunk),
                max_queue=self.max_queue,
            ),
        )

    def server_config(self) -> ServerConfig:
        """Raises ConfigError if a value is out of range."""
        store = self.response_store or cache_folder() / "responses.sqlite"
        return ServerConfig(
            host=self.host,
            port=self.port,
            api_keys=self.api_key,
            aliases=self.alias,
            response_store=None if store == "off" else _at_home(store),
            max_body_bytes=self.max_body_size,
            sse_keepalive_s=self.sse_keepalive,
            drain_timeout_s=self.drain_timeout,
        )


SERVE_SETTINGS = collect_settings(ServeSettings)


def disk_folder(given: str | None) -> Path:
    """The folder of the disk cache.

    Raises:
        ConfigError: It lies in the home of somebody who is not there.
    """
    return _at_home(given or cache_folder() / "kv")


def _at_home(path: str | Path) -> Path:
    # Shells expand `~`, settings files and variables do not.
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: there is no such home folder") from error


def merge_settings(given: Mapping[str, Any], from_file: Mapping[str, Any]) -> ServeSettings:
    """Put the layers together, by field name.

    Args:
        given: Values of flags and environment; ``None`` and an empty list mean not given.
        from_file: As `settings_file.read_settings_file` returns it.
    """
    values: dict[str, Any] = {**from_file}
    for name, value in given.items():
        if is_given(value):
            values[name] = tuple(value) if isinstance(value, list) else value
    return ServeSettings(**values)


def is_given(value: object) -> bool:
    """Whether a flag or a variable said anything."""
    return value not in (None, [], ())
