"""The whole command against a server whose every latency is known."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from stub_openai_server import Script, Sent, count_tokens, stub_server

from pippin.cli.main import app

QUICK = Script(num_tokens=4)


def bench(url: str, *args: str, expect: int = 0) -> None:
    """Run the command in this process."""
    with pytest.raises(SystemExit) as ended:
        app(["bench-serve", "--url", url, *args])
    assert ended.value.code == expect


@pytest.fixture
def measure(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """The report in JSON."""

    def run(url: str, *args: str, expect: int = 0) -> dict[str, Any]:
        bench(url, "--output", "json", *args, expect=expect)
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    return run


def only(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of the only level."""
    (level,) = report["levels"]
    (figures,) = level["figures"]
    return dict(figures)


def true_figures(log: list[Sent]) -> dict[str, float]:
    """What the stub did, in the units of the report."""
    gaps = [b - a for sent in log for a, b in itertools.pairwise(sent.token_times)]
    spans = [sent.token_times[-1] - sent.token_times[0] for sent in log]
    steps = [len(sent.token_times) - 1 for sent in log]
    wall_s = max(sent.ended_at for sent in log) - min(sent.received_at for sent in log)
    return {
        "ttft_ms": 1000 * median(sent.token_times[0] - sent.received_at for sent in log),
        "tpot_ms": 1000 * median(span / n for span, n in zip(spans, steps, strict=True)),
        "itl_ms": 1000 * median(gaps),
        "e2e_ms": 1000 * median(sent.ended_at - sent.received_at for sent in log),
        "output_tokens_s": sum(len(sent.token_times) for sent in log) / wall_s,
        "requests_s": len(log) / wall_s,
    }


@pytest.mark.parametrize("load", [("--concurrency", "4"), ("--request-rate", "20")])
def test_figures_are_what_the_server_did(
    binary: str, tmp_path: Path, load: tuple[str, str]
) -> None:
    script = Script(prefill_s=0.08, gap_s=0.02, num_reasoning=3)
    command = [binary, "bench-serve", *load, "--num-requests", "16", "--warmup", "0"]
    command += ["--output-tokens", "10", "--output-file", str(tmp_path / "report.json")]
    tries = []
    for _ in range(4):  # something else may run on this machine
        with stub_server(script) as stub:
            subprocess.run([*command, "--url", stub.url], check=True, capture_output=True)
            true = true_figures(stub.log[2:])
        figures = only(json.loads((tmp_path / "report.json").read_text()))
        said = {name: figures[name] for name in true}
        said |= {name: figures[name]["p50"] for name in true if name.endswith("_ms")}
        tries.append({name: said[name] / true[name] - 1 for name in true})
        if all(abs(error) < 0.02 for error in tries[-1].values()):
            return
    pytest.fail(f"relative errors: {tries}")


def test_reasoning_counts_as_the_first_token(measure: Callable[..., dict[str, Any]]) -> None:
    script = Script(gap_s=0.03, num_tokens=6, num_reasoning=4)
    with stub_server(script) as stub:
        figures = only(measure(stub.url, "--concurrency", "1", "--num-requests", "3"))
    assert figures["first_answer_ms"]["p50"] - figures["ttft_ms"]["p50"] > 60  # of 4 times 30
    assert figures["ttft_ms"]["count"] == figures["first_answer_ms"]["count"] == 3


def test_counts_are_the_servers_own(measure: Callable[..., dict[str, Any]]) -> None:
    script = Script(num_tokens=7, tokens_per_chunk=3, cached_tokens=5)
    with stub_server(script) as stub:
        args = ("--concurrency", "2", "--num-requests", "6", "--warmup", "0", "--seed", "1")
        figures = only(measure(stub.url, *args, "--input-tokens", "300"))
        inputs = [count_tokens(sent.body) for sent in stub.log[2:]]
    assert (figures["output_tokens"], figures["output_unit"]) == (42, "token")
    assert (figures["input_tokens"], figures["cached_tokens"]) == (sum(inputs), 30)
    assert 0.97 < sum(inputs) / 6 / 300 < 1.03
    assert figures["itl_ms"]["count"] == 12  # between chunks of 3, 3 and 1


def test_without_usage_chunks_are_counted_and_nothing_is_guessed(
    measure: Callable[..., dict[str, Any]],
) -> None:
    with stub_server(Script(num_tokens=6, tokens_per_chunk=2, gap_s=0.02, has_usage=False)) as stub:
        report = measure(stub.url, "--concurrency", "1", "--num-requests", "2")
    figures = only(report)
    assert (figures["output_tokens"], figures["output_unit"]) == (6, "chunk")
    assert figures["input_tokens"] is figures["cached_tokens"] is figures["total_tokens_s"] is None
    assert [note.partition(":")[0] for note in report["notes"]] == [
        "The server counts no tokens",
        "The server gave no usage",
    ]


def test_failures_are_counted_by_kind(measure: Callable[..., dict[str, Any]]) -> None:
    kinds = (
        QUICK,
        Script(status=503),
        Script(num_tokens=4, breaks_after=2),
        Script(num_tokens=4, error_after=1),
        Script(body=b'{"choices": []}'),
        Script(prefill_s=5),
    )

    def choose(number: int, _body: dict[str, Any]) -> Script:
        return kinds[(number - 2) % len(kinds)] if number > 1 else QUICK

    with stub_server(choose) as stub:
        args = ("--concurrency", "1", "--num-requests", "7", "--warmup", "0", "--timeout", "500ms")
        figures = only(measure(stub.url, *args))
    assert (figures["requests"], figures["succeeded"]) == (7, 2)
    assert {kind: found["count"] for kind, found in figures["failures"].items()} == {
        "HTTP 503": 1,
        "connection lost": 1,
        "error in the stream": 1,
        "stream ended early": 1,
        "timeout": 1,
    }
    assert figures["failures"]["error in the stream"]["example"] == "the stub broke"


def test_if_all_fail_so_does_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with stub_server(lambda number, _: QUICK if number < 2 else Script(status=400)) as stub:
        bench(stub.url, "--num-requests", "2", "--concurrency", "1", expect=1)
    said = capsys.readouterr()
    assert "2 failed by HTTP 400: the stub refuses" in said.out
    assert said.err.splitlines()[-1] == "pippin: all requests failed"


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_of_the_first_request_is_one_line(
    capsys: pytest.CaptureFixture[str], status: int
) -> None:
    with stub_server(Script(status=status)) as stub:
        bench(stub.url, expect=1)
    expected = f"did not answer the first request: HTTP {status}: the stub refuses"
    assert capsys.readouterr().err == f"pippin: the server {expected}\n"


@pytest.mark.parametrize(
    ("url", "said", "code"),
    [
        ("http://127.0.0.1:9", "no server answers at http://127.0.0.1:9: connection refused", 1),
        ("nonsense", "'nonsense' is no address", 2),
        ("http://[", "is no address", 2),
        ("http://h:99999", "is no address", 2),
    ],
)
def test_nobody_there_is_one_line(
    capsys: pytest.CaptureFixture[str], url: str, said: str, code: int
) -> None:
    bench(url, expect=code)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_model_is_asked_for_and_not_chosen(
    measure: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with stub_server(QUICK) as stub:
        stub.pages["/v1/models"] = {"data": [{"id": "a"}, {"id": "b"}]}
        bench(stub.url, expect=1)
        assert "name one by --model: a, b" in capsys.readouterr().err
        named = ("--model", "b", "--num-requests", "1", "--concurrency", "1", "--api-key", "k")
        assert measure(f"{stub.url}/v1/", *named)["model"] == "b"
        assert {sent.body["model"] for sent in stub.log} == {"b"}
        assert {sent.headers["authorization"] for sent in stub.log} == {"Bearer k"}


def test_the_report_says_what_the_server_says_and_no_more(
    measure: Callable[..., dict[str, Any]],
) -> None:
    args = ("--num-requests", "1", "--concurrency", "1")
    with stub_server(QUICK) as stub:
        stub.pages["/health"] = {"details": {"device": "none"}}
        told = measure(stub.url, *args)["server"]
        del stub.pages["/version"], stub.pages["/health"]
        silent = measure(stub.url, *args)["server"]
    assert told == {
        "url": stub.url,
        "version": "1.2.3",
        "server_header": "stub/1",
        "health": {"details": {"device": "none"}},
    }
    assert (silent["version"], silent["health"]) == ("unknown", "unknown")


def openapi(path: str) -> dict[str, Any]:
    """Of a server that knows the field for one of its paths."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Body"}}}
    return {
        "paths": {path: {"post": {"requestBody": {"content": content}}}},
        "components": {"schemas": {"Body": {"properties": {"ignore_eos": {}}}}},
    }


def test_ignore_eos_is_sent_to_who_knows_it(measure: Callable[..., dict[str, Any]]) -> None:
    args = ("--num-requests", "1", "--concurrency", "1", "--warmup", "0")
    for path, option, expected in (
        ("/v1/chat/completions", (), True),
        ("/v1/completions", (), False),
        ("/v1/completions", ("--ignore-eos",), True),
        ("/v1/chat/completions", ("--no-ignore-eos",), False),
    ):
        with stub_server(QUICK) as stub:
            stub.pages["/openapi.json"] = openapi(path)
            report = measure(stub.url, *args, *option)
            assert report["workload"]["ignore_eos"] is expected
            assert stub.log[-1].body.get("ignore_eos", False) is expected


def test_extra_fields_are_added_and_taken_out(measure: Callable[..., dict[str, Any]]) -> None:
    body = '{"max_tokens": null, "max_completion_tokens": 3, "top_p": 0.5}'
    with stub_server(QUICK) as stub:
        measure(stub.url, "--num-requests", "1", "--concurrency", "1", "--extra-body", body)
        sent = stub.log[-1].body
    assert (sent["max_completion_tokens"], sent["top_p"]) == (3, 0.5)
    assert "max_tokens" not in sent


def test_a_seed_sends_the_same_and_levels_send_their_own(
    measure: Callable[..., dict[str, Any]],
) -> None:
    args = ("--num-requests", "3", "--concurrency", "1,2", "--input-tokens", "60:20")

    def prompts(seed: str) -> list[str]:
        with stub_server(QUICK) as stub:
            report = measure(stub.url, *args, "--seed", seed)
            assert report["seed"] == int(seed)
            return sorted(sent.body["messages"][0]["content"] for sent in stub.log)

    first, again, other = prompts("1"), prompts("1"), prompts("2")
    assert first == again
    assert not {*first} & {*other}
    assert len({prompt[:20] for prompt in first}) == len(first) == 2 + 2 * (2 + 3)


def test_a_rate_begins_requests_when_they_are_due(measure: Callable[..., dict[str, Any]]) -> None:
    args = ("--request-rate", "40", "--arrival", "constant", "--num-requests", "5", "--warmup", "0")
    with stub_server(Script(prefill_s=0.3, num_tokens=2)) as stub:
        figures = only(measure(stub.url, *args))
        times = [sent.received_at for sent in stub.log[2:]]
    assert times[-1] - times[0] < 0.9  # one after another they would take 1.2
    assert figures["late_ms"]["count"] == 5


def test_a_duration_ends_a_level(measure: Callable[..., dict[str, Any]]) -> None:
    with stub_server(Script(prefill_s=0.1, num_tokens=2)) as stub:
        report = measure(stub.url, "--concurrency", "2", "--duration", "250ms", "--warmup", "0")
    figures = only(report)
    assert 2 <= figures["requests"] == figures["succeeded"] <= 6
    assert report["load"]["num_requests"] == []


def test_goodput_counts_what_keeps_to_all_limits(measure: Callable[..., dict[str, Any]]) -> None:
    def choose(number: int, _body: dict[str, Any]) -> Script:
        return Script(num_tokens=3, prefill_s=0.25 if number % 2 else 0.0)

    args = ("--concurrency", "1", "--num-requests", "4", "--warmup", "0")
    with stub_server(choose) as stub:
        figures = only(measure(stub.url, *args, "--slo", "ttft=200ms,tpot=10s"))
    assert figures["goodput_share"] == 0.5
    assert figures["goodput_s"] == pytest.approx(figures["requests_s"] / 2, rel=1e-3)


def run_workload(
    measure: Callable[..., dict[str, Any]], *args: str, script: Script = QUICK
) -> tuple[dict[str, Any], list[Sent]]:
    """The report, and what was sent besides calibration."""
    with stub_server(script) as stub:
        report = measure(stub.url, "--concurrency", "1", "--warmup", "0", *args)
        probes = 0 if "--file" in args else 2
        return report, stub.log[probes:]


def test_a_hit_is_each_prompt_sent_again(measure: Callable[..., dict[str, Any]]) -> None:
    report, log = run_workload(measure, "--workload", "prefix-hit", "--num-requests", "3")
    bodies = [sent.body for sent in log]
    assert bodies[:3] == bodies[3:]
    assert [figures["part"] for figures in report["levels"][0]["figures"]] == ["cold", "hit"]


def test_a_shared_prefix_is_shared(measure: Callable[..., dict[str, Any]]) -> None:
    args = ("--workload", "shared-prefix", "--prefix-tokens", "200", "--input-tokens", "50")
    _, log = run_workload(measure, *args, "--num-prefixes", "2", "--num-requests", "4")
    texts = [sent.body["messages"][0]["content"] for sent in log]
    assert [text[:350] == texts[0][:350] for text in texts] == [True, False, True, False]
    assert len({text[-90:] for text in texts}) == 4


def test_conversations_carry_their_answers(measure: Callable[..., dict[str, Any]]) -> None:
    args = ("--workload", "multi-turn", "--turns", "3", "--num-requests", "5")
    report, log = run_workload(measure, *args, script=Script(num_tokens=2, num_reasoning=1))
    assert [len(sent.body["messages"]) for sent in log] == [1, 3, 5, 1, 3, 5]
    assert log[2].body["messages"][:3] == log[1].body["messages"]
    assert log[1].body["messages"][1] == {"role": "assistant", "content": "x"}
    figures = report["levels"][0]["figures"]
    assert [(part["part"], part["requests"], part["requests_s"] is None) for part in figures] == [
        *(("", 6, False), ("first turn", 2, True), ("later turns", 4, True))
    ]


def test_pictures_are_data_urls(measure: Callable[..., dict[str, Any]]) -> None:
    args = ("--workload", "images", "--images", "2", "--image-size", "32x16")
    _, log = run_workload(measure, *args, "--num-requests", "2")
    contents = [sent.body["messages"][0]["content"] for sent in log]
    urls = [part["image_url"]["url"] for content in contents for part in content[1:]]
    assert len({*urls}) == 4
    assert all(url.startswith("data:image/png;base64,iVBOR") for url in urls)


def test_embeddings_have_no_tokens_to_wait_for(measure: Callable[..., dict[str, Any]]) -> None:
    args = ("--endpoint", "embeddings", "--inputs", "3", "--num-requests", "2")
    report, log = run_workload(measure, *args, "--input-tokens", "40", "--slo", "e2e=10s")
    assert [(sent.path, len(sent.body["input"])) for sent in log] == [("/v1/embeddings", 3)] * 2
    figures = only(report)
    assert figures["input_tokens"] == sum(count_tokens(sent.body) for sent in log)
    assert figures["total_tokens_s"] > 0
    assert figures["ttft_ms"] is figures["output_tokens_s"] is None
    assert figures["e2e_ms"]["count"] == 2


def test_completions_take_texts_of_a_file(
    measure: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\ntwo\n")
    args = ("--workload", "prompts", "--file", str(file), "--endpoint", "completions")
    report, log = run_workload(measure, *args, "--num-requests", "4", "--no-unique-prefix")
    assert sorted(sent.body["prompt"] for sent in log) == ["one", "one", "two", "two"]
    assert "max_tokens" not in log[0].body
    assert len(report["workload"]["file_sha256"]) == 64


def test_a_slowdown_fails_the_comparison(tmp_path: Path, binary: str) -> None:
    base = tmp_path / "base.json"
    command = [binary, "bench-serve", "--concurrency", "2", "--num-requests", "8", "--warmup", "0"]
    command += ["--output-tokens", "6"]

    def run(slowness: float, *args: str) -> subprocess.CompletedProcess[str]:
        with stub_server(Script(prefill_s=0.1 * slowness, gap_s=0.02 * slowness)) as stub:
            return subprocess.run(
                [*command, "--url", stub.url, *args], capture_output=True, text=True, check=False
            )

    for _ in range(4):  # something else may run on this machine
        run(1.0, "--output-file", str(base))
        slow, fast = (run(slowness, "--compare", str(base)) for slowness in (1.2, 0.95))
        if (slow.returncode, fast.returncode) == (3, 0):
            break
    assert slow.returncode == 3
    assert "regressions of more than 10% (marked !) against" in slow.stdout
    assert fast.returncode == 0, fast.stdout
    assert "no regression against" in fast.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--input-tokens", "100"), "the base has another workload: input_tokens is"),
        (("--model", "other"), "the base is of the model stub"),
        (("--concurrency", "5"), "the base has none of these levels of load"),
    ],
)
def test_what_is_not_the_same_is_not_measured_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str
) -> None:
    base = str(tmp_path / "base.json")
    with stub_server(QUICK) as stub:
        bench(stub.url, "--concurrency", "1", "--num-requests", "1", "--output-file", base)
        capsys.readouterr()
        num_sent = len(stub.log)
        bench(stub.url, "--concurrency", "1", "--compare", base, *args, expect=2)
        assert len(stub.log) == num_sent + 2  # which tell the lengths of words
    assert f"pippin: --compare: {said}" in capsys.readouterr().err


def test_an_interrupt_reports_what_there_is(binary: str) -> None:
    def choose(number: int, _body: dict[str, Any]) -> Script:
        return QUICK if number < 6 else Script(prefill_s=60)

    with stub_server(choose) as stub:
        command = [binary, "bench-serve", "--url", stub.url, "--concurrency", "2,4"]
        with subprocess.Popen(
            [*command, "--warmup", "0", "--output", "json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            until = time.monotonic() + 20
            while len(stub.log) < 8 and time.monotonic() < until:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=20)
    report = json.loads(out)
    assert (process.returncode, report["cut"]) == (130, True)
    figures = only(report)
    assert (figures["succeeded"], figures["cut"], figures["failures"]) == (4, 2, {})


def test_an_interrupt_before_anything_is_one_line(binary: str) -> None:
    with stub_server(Script(prefill_s=60)) as stub:
        command = [binary, "bench-serve", "--url", stub.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            until = time.monotonic() + 20
            while not stub.log and time.monotonic() < until:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=20)
    assert (process.returncode, out, error) == (130, b"", b"interrupted\n")


@pytest.mark.parametrize("form", ["table", "json", "csv", "md", "html"])
def test_a_pipe_gets_no_control_codes(
    capsys: pytest.CaptureFixture[str], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    with stub_server(QUICK) as stub:
        args = ("--concurrency", "1,2", "--num-requests", "2", "--slo", "ttft=1s")
        bench(stub.url, *args, "--output", form)
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "concurrency 2: 2 done" in said.err
    if form == "csv":
        lines = list(csv.DictReader(io.StringIO(said.out)))
        assert [(line["concurrency"], line["succeeded"]) for line in lines] == [
            *(("1", "2"), ("2", "2"))
        ]
    else:
        assert "stub" in said.out


def run_in_terminal(command: list[str], **env: str) -> str:
    """What a terminal sees."""
    main, side = pty.openpty()
    with subprocess.Popen(command, stdout=side, stderr=side, env={**os.environ, **env}) as process:
        os.close(side)
        seen = b""
        try:
            while part := os.read(main, 65536):
                seen += part
        except OSError:  # how Linux says that the other side has closed
            pass
        finally:
            os.close(main)
    assert process.returncode == 0
    return seen.decode()


@pytest.mark.parametrize(
    ("env", "is_live", "has_style"),
    [
        ({"TERM": "xterm-256color", "COLUMNS": "60"}, True, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_a_terminal_gets_what_it_can_show(
    binary: str, env: dict[str, str], is_live: bool, has_style: bool
) -> None:
    with stub_server(QUICK) as stub:
        command = [binary, "bench-serve", "--url", stub.url, "--num-requests", "2"]
        seen = run_in_terminal(command, **env)
    assert ("\x1b[2K" in seen) is is_live
    assert (re.search(r"\x1b\[[0-9;]*[1-9;][0-9;]*m", seen) is not None) is has_style
    if "COLUMNS" in env:
        assert "clients" in seen
