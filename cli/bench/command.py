"""`pippin bench-serve`: which options go together. What it does is in `run`."""

from __future__ import annotations

import secrets
from pathlib import Path

import typer

from . import option_values as values
from . import options
from .plan import Arrival, BenchPlan, Endpoint, Format, Length, Level, Workload, WorkloadKind

# The defaults that the help texts tell; None as default says that an option was not given.
_INPUT_TOKENS, _OUTPUT_TOKENS, _PREFIX_TOKENS = Length(512), Length(128), 1024
_TURNS = 4
_IMAGE_SIZE = (512, 512)
_CONCURRENCY = (1, 4, 16)
_WARMUP = 2
_TIMEOUT_S = 600.0
_MAX_REGRESSION = 0.1
_SUFFIXES = {".json": Format.JSON, ".csv": Format.CSV, ".md": Format.MD, ".html": Format.HTML}


def bench_serve(  # noqa: PLR0913 - typer makes one parameter of every option
    *,
    url: options.Url = "http://127.0.0.1:8000",
    api_key: options.ApiKey = None,
    model: options.Model = None,
    endpoint: options.EndpointOption = Endpoint.CHAT,
    workload: options.WorkloadOption = WorkloadKind.SYNTHETIC,
    input_tokens: options.InputTokens = None,
    output_tokens: options.OutputTokens = None,
    prefix_tokens: options.PrefixTokens = None,
    num_prefixes: options.NumPrefixes = None,
    turns: options.Turns = None,
    file: options.File = None,
    unique_prefix: options.UniquePrefix = None,
    images: options.Images = None,
    image_size: options.ImageSize = None,
    inputs: options.Inputs = None,
    ignore_eos: options.IgnoreEos = None,
    temperature: options.Temperature = None,
    extra_body: options.ExtraBody = None,
    concurrency: options.Concurrency = None,
    request_rate: options.RequestRate = None,
    arrival: options.ArrivalOption = None,
    num_requests: options.NumRequests = None,
    duration: options.Duration = None,
    warmup: options.Warmup = None,
    timeout: options.Timeout = None,
    slo: options.Slo = None,
    seed: options.Seed = None,
    output: options.OutputOption = None,
    output_file: options.OutputFile = None,
    compare: options.Compare = None,
    max_regression: options.MaxRegression = None,
) -> None:
    """Measure how fast a server is; any with an API like OpenAI's.

    Exit code 1 if all requests failed, 3 after a regression, 130 after an interrupt, which still
    reports what was measured until then.
    """
    is_file, is_embeddings = workload.is_file, endpoint is Endpoint.EMBEDDINGS
    is_prefix, is_images = workload is WorkloadKind.SHARED_PREFIX, workload is WorkloadKind.IMAGES
    is_multi_turn = workload is WorkloadKind.MULTI_TURN
    for name, value, fits, where in (
        ("--input-tokens", input_tokens, not is_file, "prompts that are made up"),
        ("--output-tokens", output_tokens, not is_embeddings, "chat or completions"),
        ("--ignore-eos", ignore_eos, not is_embeddings, "chat or completions"),
        ("--temperature", temperature, not is_embeddings, "chat or completions"),
        ("--prefix-tokens", prefix_tokens, is_prefix, "--workload shared-prefix"),
        ("--num-prefixes", num_prefixes, is_prefix, "--workload shared-prefix"),
        ("--turns", turns, is_multi_turn, "--workload multi-turn"),
        ("--file", file, is_file, "--workload prompts or sharegpt"),
        ("--unique-prefix", unique_prefix, is_file, "--workload prompts or sharegpt"),
        ("--images", images, is_images, "--workload images"),
        ("--image-size", image_size, is_images, "--workload images"),
        ("--inputs", inputs, is_embeddings and not is_file, "embeddings of made up prompts"),
        ("--arrival", arrival, request_rate is not None, "--request-rate"),
        ("--max-regression", max_regression, compare is not None, "--compare"),
    ):
        if value is not None and not fits:
            raise typer.BadParameter(f"{name} goes with {where} only")
    if (is_multi_turn or is_images) and endpoint is not Endpoint.CHAT:
        raise typer.BadParameter(f"--workload {workload} goes with --endpoint chat only")
    if is_file and file is None:
        raise typer.BadParameter(f"--workload {workload} needs a --file")
    if concurrency is not None and request_rate is not None:
        raise typer.BadParameter("give --concurrency or --request-rate, not both")
    if is_embeddings and slo is not None and set(slo) != {"e2e"}:
        raise typer.BadParameter("--slo: embeddings have no first token; give e2e alone")
    form = _choose_format(output, output_file)
    if not is_file and not is_embeddings:
        output_tokens = output_tokens or _OUTPUT_TOKENS
    plan = BenchPlan(
        url=url,
        api_key=api_key,
        model=model,
        workload=Workload(
            kind=workload,
            endpoint=endpoint,
            input_tokens=input_tokens or _INPUT_TOKENS,
            output_tokens=output_tokens,
            prefix_tokens=(prefix_tokens or _PREFIX_TOKENS) if is_prefix else 0,
            num_prefixes=num_prefixes or 1,
            turns=(turns or _TURNS) if is_multi_turn else 1,
            file=file,
            unique_prefix=unique_prefix is not False,
            images=(images or 1) if is_images else 0,
            image_size=image_size or _IMAGE_SIZE,
            inputs=inputs or 1,
            ignore_eos=False if is_embeddings else ignore_eos,
            temperature=temperature or 0.0,
            extra_body=extra_body or {},
        ),
        levels=_choose_levels(concurrency, request_rate, arrival),
        num_requests=num_requests,
        duration_s=duration,
        warmup=_WARMUP if warmup is None else warmup,
        timeout_s=timeout or _TIMEOUT_S,
        slo=slo or {},
        seed=secrets.randbelow(2**32) if seed is None else seed,
    )
    from .run import Output, run_bench

    run_bench(
        plan,
        Output(
            form=form,
            file=output_file,
            base=compare,
            max_regression=_MAX_REGRESSION if max_regression is None else max_regression,
        ),
    )


def _choose_format(output: Format | None, file: Path | None) -> Format:
    if file is None:
        return output or Format.TABLE
    form = output or _SUFFIXES.get(file.suffix)
    if form is None or form is Format.TABLE:
        raise typer.BadParameter("--output-file needs --output json, csv, md or html, or a name so")
    return form


def _choose_levels(
    concurrency: values.Counts | None, request_rate: values.Rates | None, arrival: Arrival | None
) -> tuple[Level, ...]:
    if request_rate is not None:
        how = arrival or Arrival.POISSON
        return tuple(Level(request_rate=rate, arrival=how) for rate in request_rate)
    return tuple(Level(concurrency=count) for count in concurrency or _CONCURRENCY)
