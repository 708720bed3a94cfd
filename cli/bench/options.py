"""The options of `pippin bench-serve`, one Annotated type each; ``None`` means "not given".

The defaults that the help texts tell are in `command`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import option_values as values
from .plan import Arrival, Endpoint, Format, Length, WorkloadKind

Url = Annotated[
    str,
    typer.Option(
        "--url",
        help="Address of the server, with or without /v1. Default: http://127.0.0.1:8000.",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", help="Key of the server, if it wants one.", envvar="PIPPIN_API_KEY"),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="Default: the only one that the server lists."),
]
EndpointOption = Annotated[
    Endpoint,
    typer.Option(
        "--endpoint", help="What of the server is asked. Default: chat.", show_default=False
    ),
]
WorkloadOption = Annotated[
    WorkloadKind,
    typer.Option(
        "--workload",
        help="What is asked: 'synthetic' prompts of random words; a 'shared-prefix' before them; "
        "'prefix-hit', where each prompt is sent twice to measure exactly what the cache is worth; "
        "'multi-turn' conversations; the 'prompts' or the 'sharegpt' conversations of a --file; "
        "generated 'images' with a prompt. Default: synthetic.",
        show_default=False,
    ),
]
InputTokens = Annotated[
    Length | None,
    typer.Option(
        "--input-tokens",
        metavar="N[:SPREAD]",
        parser=values.parse_length,
        help="Length of a prompt, or of each turn, in tokens by the server's own count; with a "
        "spread, from N-SPREAD to N+SPREAD. Default: 512.",
    ),
]
OutputTokens = Annotated[
    Length | None,
    typer.Option(
        "--output-tokens",
        metavar="N[:SPREAD]",
        parser=values.parse_length,
        help="Length of an answer in tokens, written the same way. Default: 128; with a file, "
        "what the file or the model says.",
    ),
]
PrefixTokens = Annotated[
    int | None,
    typer.Option(
        "--prefix-tokens",
        min=1,
        help="With shared-prefix: length of the prefix in tokens, before --input-tokens. "
        "Default: 1024.",
    ),
]
NumPrefixes = Annotated[
    int | None,
    typer.Option(
        "--num-prefixes",
        min=1,
        help="With shared-prefix: how many prefixes take turns. Default: 1.",
    ),
]
Turns = Annotated[
    int | None,
    typer.Option(
        "--turns",
        min=2,
        help="With multi-turn: questions in a conversation, each asked when the last one is "
        "answered. Default: 4.",
    ),
]
File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        help="With prompts: a prompt a line, or JSON lines (.jsonl) with 'prompt' or 'messages', "
        "and perhaps 'max_tokens'. With sharegpt: a JSON list of 'conversations', whose first "
        "questions are asked.",
    ),
]
UniquePrefix = Annotated[
    bool | None,
    typer.Option(
        "--unique-prefix/--no-unique-prefix",
        help="With prompts or sharegpt: put a few words of its own before each prompt, so that no "
        "cache has seen it; other prompts differ anyway. Default: do.",
        show_default=False,
    ),
]
Images = Annotated[
    int | None,
    typer.Option("--images", min=1, help="With images: so many in each request. Default: 1."),
]
ImageSize = Annotated[
    values.Size | None,
    typer.Option(
        "--image-size",
        metavar="WxH",
        parser=values.parse_size,
        help="With images: width and height in pixels. Default: 512x512.",
    ),
]
Inputs = Annotated[
    int | None,
    typer.Option("--inputs", min=1, help="With embeddings: texts in each request. Default: 1."),
]
IgnoreEos = Annotated[
    bool | None,
    typer.Option(
        "--ignore-eos/--no-ignore-eos",
        help="Send 'ignore_eos', so that answers have their full length. Default: if the prompts "
        "are made up and the server's /openapi.json knows the field.",
        show_default=False,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", min=0.0, help="Of sampling. Default: 0."),
]
ExtraBody = Annotated[
    values.Body | None,
    typer.Option(
        "--extra-body",
        metavar="JSON",
        parser=values.parse_body,
        help="An object of further fields for each request; a null takes a field out.",
    ),
]
Concurrency = Annotated[
    values.Counts | None,
    typer.Option(
        "--concurrency",
        metavar="N[,N...]",
        parser=values.parse_counts,
        help="So many requests at once, one level after another. Default: 1,4,16.",
    ),
]
RequestRate = Annotated[
    values.Rates | None,
    typer.Option(
        "--request-rate",
        metavar="R[,R...]",
        parser=values.parse_rates,
        help="Instead: so many requests begun each second (with multi-turn: conversations), "
        "however many still run.",
    ),
]
ArrivalOption = Annotated[
    Arrival | None,
    typer.Option(
        "--arrival",
        help="With --request-rate: how requests follow each other. Default: poisson.",
    ),
]
NumRequests = Annotated[
    int | None,
    typer.Option(
        "--num-requests",
        min=1,
        help="Requests at each level, in whole conversations. Default: 8 for each at once, but at "
        "least 16; with a rate, 50; with --duration, as many as it allows.",
    ),
]
Duration = Annotated[
    float | None,
    typer.Option(
        "--duration",
        metavar="TIME",
        parser=values.parse_seconds,
        help="Begin no more requests at a level after this time, like 30s or 5m; those that run "
        "are waited for.",
    ),
]
Warmup = Annotated[
    int | None,
    typer.Option(
        "--warmup", min=0, help="Requests before each level that are not counted. Default: 2."
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="TIME",
        parser=values.parse_seconds,
        help="A request that takes longer has failed. Default: 10m.",
    ),
]
Slo = Annotated[
    values.Limits | None,
    typer.Option(
        "--slo",
        metavar="LIMITS",
        parser=values.parse_slo,
        help="Limits like ttft=500ms,tpot=50ms,e2e=10s; the goodput is of requests that keep to "
        "all of them.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        help="The same seed sends the same requests, which a server that still runs may have in "
        "its cache. Default: a new one, which the report tells.",
    ),
]
OutputOption = Annotated[
    Format | None,
    typer.Option(
        "--output",
        help="Form of the report; html has charts and nothing outside itself. Default: table, or "
        "by the name of --output-file.",
    ),
]
OutputFile = Annotated[
    Path | None,
    typer.Option(
        "--output-file",
        metavar="FILE",
        help="Write the report there, and tables to stdout.",
    ),
]
Compare = Annotated[
    Path | None,
    typer.Option(
        "--compare",
        metavar="BASE.json",
        help="Show every figure's change from an earlier report in JSON, and end with exit code 3 "
        "after a regression: of a mean or a rate, or of a percentile with ten values beyond it. "
        "Another model or workload is refused.",
    ),
]
MaxRegression = Annotated[
    float | None,
    typer.Option(
        "--max-regression",
        metavar="SHARE",
        parser=values.parse_share,
        help="With --compare: what is no regression yet. Default: 10%.",
    ),
]
