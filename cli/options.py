"""The options of `pippin serve`, one Annotated type each.

Defaults are absent on purpose: `None` means "not given", and `settings` then looks into the file
and at last at the configs' own defaults. The help texts say what these are, and a test compares.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pippin.core.config import MAX_DRAFT_TOKENS, Speculation

from .byte_size import parse_bytes, parse_disk_bytes


class LogLevel(StrEnum):
    """How much the log says."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _parse_size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _parse_disk_size(text: str) -> int:
    try:
        return parse_disk_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="What to serve: 'demo', a folder, a .gguf file, or a hub id like org/name. "
        "Default: demo.",
        envvar="PIPPIN_MODEL",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML file with a [serve] table; flags and environment go before it.",
        envvar="PIPPIN_CONFIG",
    ),
]
HostOption = Annotated[
    str | None,
    typer.Option("--host", help="Address to listen on. Default: 127.0.0.1.", envvar="PIPPIN_HOST"),
]
PortOption = Annotated[
    int | None,
    typer.Option(
        "--port",
        min=0,
        max=65535,
        help="TCP port; 0 takes a free one. Default: 8000.",
        envvar="PIPPIN_PORT",
    ),
]
ServedModelNameOption = Annotated[
    str | None,
    typer.Option(
        "--served-model-name",
        metavar="NAME",
        help="Name of the model on the wire. Default: its hub id, or its folder's name.",
        envvar="PIPPIN_SERVED_MODEL_NAME",
    ),
]
AliasOption = Annotated[
    list[str] | None,
    typer.Option(
        "--alias",
        metavar="NAME",
        help="Another name of the model, in which * stands for any text, like claude-*; a * alone "
        "takes every name. May be given more than once, and the variable may hold several with "
        "spaces between. Default: none.",
        envvar="PIPPIN_ALIAS",
    ),
]
MaxModelLenOption = Annotated[
    int | None,
    typer.Option(
        "--max-model-len",
        min=1,
        help="Most tokens of prompt and answer together. Default: what model and memory allow.",
        envvar="PIPPIN_MAX_MODEL_LEN",
    ),
]
MaxNumSeqsOption = Annotated[
    int | None,
    typer.Option(
        "--max-num-seqs",
        min=1,
        help="Most answers that are generated together. Default: 64.",
        envvar="PIPPIN_MAX_NUM_SEQS",
    ),
]
KvCacheMemoryOption = Annotated[
    int | None,
    typer.Option(
        "--kv-cache-memory",
        metavar="SIZE",
        parser=_parse_size,
        help="Memory for keys and values, like 2GiB or 500MB. Default: from the device's memory.",
        envvar="PIPPIN_KV_CACHE_MEMORY",
    ),
]
KvBitsOption = Annotated[
    str | None,
    typer.Option(
        "--kv-bits",
        metavar="BITS",
        help="Bits of keys and values that are kept of the whole past: 8, 4, or keys and values "
        "apart, like 8,4; 'off' keeps what the model gives. Default: off.",
        envvar="PIPPIN_KV_BITS",
    ),
]
BlockSizeOption = Annotated[
    int | None,
    typer.Option(
        "--block-size",
        min=1,
        help="Tokens in a block of the KV cache; a power of two. Default: 32.",
        envvar="PIPPIN_BLOCK_SIZE",
    ),
]
KvDiskDirOption = Annotated[
    Path | None,
    typer.Option(
        "--kv-disk-dir",
        metavar="FOLDER",
        help="Folder that keeps keys and values for later starts; several servers may share it. "
        "Default: kv in pippin's cache folder.",
        envvar="PIPPIN_KV_DISK_DIR",
    ),
]
KvDiskSizeOption = Annotated[
    int | None,
    typer.Option(
        "--kv-disk-size",
        metavar="SIZE",
        parser=_parse_disk_size,
        help="The most that this folder may hold, like 20GiB; 'off' keeps nothing on the disk. "
        "Default: a tenth of the disk's free space, 16 GiB at most.",
        envvar="PIPPIN_KV_DISK_SIZE",
    ),
]
WarmPromptsOption = Annotated[
    Path | None,
    typer.Option(
        "--warm-prompts",
        metavar="FILE",
        help="Prompts to compute once the server is ready, so that those that begin like them are "
        "quick: JSON or JSON lines, or a text. Default: none.",
        envvar="PIPPIN_WARM_PROMPTS",
    ),
]
PrefillChunkOption = Annotated[
    int | None,
    typer.Option(
        "--prefill-chunk",
        min=1,
        help="Most prompt tokens computed in one step. Default: 2048.",
        envvar="PIPPIN_PREFILL_CHUNK",
    ),
]
MaxQueueOption = Annotated[
    int | None,
    typer.Option(
        "--max-queue",
        min=1,
        help="Most requests that may wait; further ones are refused. Default: 1024.",
        envvar="PIPPIN_MAX_QUEUE",
    ),
]
SpeculationOption = Annotated[
    Speculation | None,
    typer.Option(
        "--speculation",
        help="Who guesses tokens ahead, for one step to check several: nobody, the text itself "
        "(ngram), or a draft model. Used only while it pays. Default: off, or draft with "
        "--draft-model.",
        envvar="PIPPIN_SPECULATION",
    ),
]
DraftTokensOption = Annotated[
    int | None,
    typer.Option(
        "--draft-tokens",
        min=1,
        max=MAX_DRAFT_TOKENS,
        help="Most tokens guessed for one answer at a time. Default: 8.",
        envvar="PIPPIN_DRAFT_TOKENS",
    ),
]
DraftModelOption = Annotated[
    str | None,
    typer.Option(
        "--draft-model",
        metavar="MODEL",
        help="A small model with the same tokens that guesses ahead: a folder, a .gguf file, or a "
        "hub id. Default: none.",
        envvar="PIPPIN_DRAFT_MODEL",
    ),
]
ToolCallParserOption = Annotated[
    str | None,
    typer.Option(
        "--tool-call-parser",
        metavar="NAME",
        help="How the model writes tool calls, such as hermes, llama3 or mistral; 'off' looks for "
        "none. Default: what its chat template tells.",
        envvar="PIPPIN_TOOL_CALL_PARSER",
    ),
]
ReasoningParserOption = Annotated[
    str | None,
    typer.Option(
        "--reasoning-parser",
        metavar="NAME",
        help="How the model marks what it thinks, such as think or mistral; 'off' takes all for "
        "the answer. Default: what its chat template tells.",
        envvar="PIPPIN_REASONING_PARSER",
    ),
]
ResponseStoreOption = Annotated[
    str | None,
    typer.Option(
        "--response-store",
        metavar="FILE",
        help="Where responses are kept for callers that come back to them; 'off' keeps none. "
        "Default: responses.sqlite in pippin's cache folder.",
        envvar="PIPPIN_RESPONSE_STORE",
    ),
]
LogLevelOption = Annotated[
    LogLevel | None,
    typer.Option(
        "--log-level", help="How much the log says. Default: info.", envvar="PIPPIN_LOG_LEVEL"
    ),
]
ApiKeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="Key that callers must show; may be given more than once, and the variable may hold "
        "several with spaces between. Default: none, open to everyone.",
        envvar="PIPPIN_API_KEY",
    ),
]
