"""Options that are more than a number, and which of them go together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from pippin.cli.bench import option_values as values
from pippin.cli.bench.plan import Length
from pippin.cli.main import app


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (values.parse_ms, "500ms", 500.0),
        (values.parse_ms, "1.5m", 90_000.0),
        (values.parse_seconds, "30s", 30.0),
        (values.parse_length, "512", Length(512)),
        (values.parse_length, "512:128", Length(512, 128)),
        (values.parse_counts, "1,4,16", (1, 4, 16)),
        (values.parse_rates, "0.5,2", (0.5, 2.0)),
        (values.parse_slo, "ttft=500ms, tpot=50ms,e2e=2s", {"ttft": 500, "tpot": 50, "e2e": 2000}),
        (values.parse_share, "12.5%", 0.125),
        (values.parse_size, "640x480", (640, 480)),
        (values.parse_body, '{"top_p": 1}', {"top_p": 1}),
    ],
)
def test_values_are_read(parse: Callable[[str], object], text: str, expected: object) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (values.parse_ms, ("5", "0s", "-1s", "1 hour", "")),
        (values.parse_length, ("0", "5:5", "1:", "a", "1.5")),
        (values.parse_counts, ("0", "1,", "1.5", "1,1", "")),
        (values.parse_rates, ("nan", "inf", "-1", "2,2.0")),
        (values.parse_slo, ("ttft", "ttft=5", "itl=5ms", "ttft=5ms,ttft=6ms")),
        (values.parse_share, ("10", "-1%", "ten%")),
        (values.parse_size, ("512", "0x5", "5x")),
        (values.parse_body, ("[]", "{", '{"stream": false}', '{"model": "x"}')),
    ],
)
def test_nonsense_is_refused(parse: Callable[[str], object], texts: tuple[str, ...]) -> None:
    for text in texts:
        with pytest.raises(typer.BadParameter):
            parse(text)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--turns 3", "--turns goes with --workload multi-turn only"),
        ("--prefix-tokens 3", "--prefix-tokens goes with --workload shared-prefix only"),
        ("--images 3", "--images goes with --workload images only"),
        ("--file x", "--file goes with --workload prompts or sharegpt only"),
        ("--no-unique-prefix", "--unique-prefix goes with --workload prompts or sharegpt only"),
        ("--workload prompts", "--workload prompts needs a --file"),
        ("--workload prompts --file x --input-tokens 5", "--input-tokens goes with prompts that"),
        ("--workload prompts --file /no/such", "/no/such cannot be read"),
        ("--workload images --endpoint completions", "--workload images goes with --endpoint chat"),
        (
            "--endpoint embeddings --output-tokens 5",
            "--output-tokens goes with chat or completions",
        ),
        ("--endpoint embeddings --slo ttft=1s", "give e2e alone"),
        ("--inputs 2", "--inputs goes with embeddings"),
        ("--arrival poisson", "--arrival goes with --request-rate only"),
        ("--concurrency 1 --request-rate 1", "not both"),
        ("--max-regression 5%", "--max-regression goes with --compare only"),
        ("--compare /no/such.json", "/no/such.json cannot be read"),
        ("--output-file x.txt", "--output-file needs --output"),
        ("--output table --output-file x.json", "--output-file needs --output"),
        ("--output json --output-file /no/such/x", "there is no folder /no/such"),
        ("--concurrency 0", "'0' is not a list"),
        ("--seed -1", "--seed"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(
    args: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["bench-serve", "--url", "http://127.0.0.1:9", *args.split()])
    error = capsys.readouterr().err
    assert said in error
    assert (ended.value.code, error.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is no report of"),
        ('{"kind": "pippin bench-serve", "format": 99}', "has format 99, and this is 1"),
    ],
)
def test_a_base_must_be_a_report(
    tmp_path: Path, content: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "base.json"
    file.write_text(content)
    with pytest.raises(SystemExit):
        app(["bench-serve", "--url", "http://127.0.0.1:9", "--compare", str(file)])
    assert said in capsys.readouterr().err
