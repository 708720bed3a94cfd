"""`pippin chat`: its options. What it does is in `run`."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from pippin.core.config import Speculation

from .. import options
from ..completion import complete_models
from ..options import setting_option
from ..settings_file import load_settings
from .attachments import KINDS, Kind
from .settings import SETTINGS, read_setting, setting_name

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        autocompletion=complete_models,
        help="Whom to ask: 'demo', a folder, a .gguf file, or a hub id like org/name; with --url a "
        "name that the server knows. Default: PIPPIN_MODEL or demo; with --url the first that the "
        "server lists.",
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="Address of a server with OpenAI's API, like http://127.0.0.1:8000. Default: none, "
        "the model is loaded here.",
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="Key of the server; of several in the variable, the first. Default: none.",
        envvar=["PIPPIN_API_KEY", "OPENAI_API_KEY"],
    ),
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="Answer this and end; what comes over stdin stands before it. Default: converse, or "
        "answer stdin if it is no terminal.",
    ),
]
SystemOption = Annotated[
    str | None,
    typer.Option("--system", metavar="TEXT", help="System prompt. Default: none."),
]
LoadOption = Annotated[
    str | None,
    typer.Option(
        "--load",
        metavar="NAME",
        help="Go on with a saved conversation, by its name or its path. Default: a new one.",
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object: text, reasoning, usage, timings."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Anything else that /set takes, like thinking=off; may be given more than once. "
        "Default: none.",
    ),
]


def _attached(kind: Kind, what: str) -> Any:
    return typer.Option(
        f"--{kind}",
        metavar="PATH",
        help=f"{what} that goes with the first message; may be given more than once. "
        "Default: none.",
    )


def _drawn(name: str, metavar: str, default: str = "the model's") -> Any:
    meaning = SETTINGS[name]
    return typer.Option(
        f"--{name.replace('_', '-')}",
        metavar=metavar,
        help=f"{meaning[0].upper()}{meaning[1:]}. Default: {default}.",
    )


# Those of a model in this process.
_ENGINE = (
    *("config", "max_model_len", "kv_cache_memory", "kv_bits", "kv_disk_dir", "kv_disk_size"),
    *("speculation", "draft_tokens", "draft_model", "reasoning_parser"),
)
_SETTINGS = (
    *("temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "stop"),
    *("reasoning_effort", "thinking_budget"),
)


def chat(  # noqa: PLR0913 - typer makes one parameter of every option
    context: typer.Context,
    model: ModelArgument = None,
    *,
    url: UrlOption = None,
    api_key: KeyOption = None,
    prompt: PromptOption = None,
    system: SystemOption = None,
    load: LoadOption = None,
    as_json: JsonOption = False,
    file: Annotated[list[str] | None, _attached("file", "Text file")] = None,
    image: Annotated[list[str] | None, _attached("image", "Image, or its address,")] = None,
    audio: Annotated[list[str] | None, _attached("audio", "WAV or MP3 file")] = None,
    temperature: Annotated[str | None, _drawn("temperature", "NUMBER")] = None,
    top_p: Annotated[str | None, _drawn("top_p", "NUMBER")] = None,
    top_k: Annotated[str | None, _drawn("top_k", "COUNT")] = None,
    min_p: Annotated[str | None, _drawn("min_p", "NUMBER")] = None,
    max_tokens: Annotated[str | None, _drawn("max_tokens", "COUNT", "as many as fit")] = None,
    seed: Annotated[str | None, _drawn("seed", "NUMBER", "none")] = None,
    stop: Annotated[str | None, _drawn("stop", "TEXT", "none")] = None,
    reasoning_effort: Annotated[str | None, _drawn("reasoning_effort", "EFFORT")] = None,
    thinking_budget: Annotated[str | None, _drawn("thinking_budget", "COUNT", "no limit")] = None,
    set_: SetOption = None,
    config: options.ConfigOption = None,
    max_model_len: Annotated[int | None, setting_option("max_model_len")] = None,
    kv_cache_memory: Annotated[int | None, setting_option("kv_cache_memory")] = None,
    kv_bits: Annotated[str | None, setting_option("kv_bits")] = None,
    kv_disk_dir: Annotated[str | None, setting_option("kv_disk_dir")] = None,
    kv_disk_size: Annotated[int | None, setting_option("kv_disk_size")] = None,
    speculation: Annotated[Speculation | None, setting_option("speculation")] = None,
    draft_tokens: Annotated[int | None, setting_option("draft_tokens")] = None,
    draft_model: Annotated[str | None, setting_option("draft_model")] = None,
    reasoning_parser: Annotated[str | None, setting_option("reasoning_parser")] = None,
) -> None:
    """Talk with a model: one loaded here, or one of a server.

    On a terminal this is a conversation; /help in it lists the commands. It saves itself as it
    goes, in PIPPIN_DATA_DIR or where the platform keeps data. With --prompt, or with text on stdin,
    it is one answer on stdout.
    """
    given = context.params
    if url is not None:
        for name in _ENGINE:
            # A variable or two may be there for `pippin serve`.
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                flag = f"--{name.replace('_', '-')}"
                raise typer.BadParameter(f"{flag} is for a model that is loaded here, not at --url")
    # rich, prompt_toolkit and httpx now, mlx later: `--help` must not pay for them.
    from .run import ChatRequest, run_chat

    pairs = [(name, given[name]) for name in _SETTINGS if given[name] is not None]
    pairs += [(name, value) for name, _, value in (text.partition("=") for text in set_ or ())]
    here = {name: given[name] for name in _ENGINE if name != "config"}
    here |= {"model": model or os.environ.get("PIPPIN_MODEL")}
    engine = load_settings(here, config) if url is None else None
    run_chat(
        ChatRequest(
            model=model if engine is None else engine.model,
            url=url,
            api_key=(api_key or "").partition(" ")[0] or None,
            engine=None if engine is None else engine.engine_config(),
            prompt=prompt,
            system=system,
            load=load,
            settings={setting_name(name): read_setting(name, value) for name, value in pairs},
            attached=tuple((kind, path) for kind in KINDS for path in given[kind] or ()),
            as_json=as_json,
        )
    )
