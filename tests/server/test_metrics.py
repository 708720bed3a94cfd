from __future__ import annotations

import importlib.metadata
import threading
from dataclasses import asdict, replace

import pytest
from fake_engine import Fail, FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from pippin.cli.cache_stats import read_metrics
from pippin.core.cache.disk.stats import DiskStats
from pippin.core.engine.stats import EngineStats, FinishedStats, SpeculationStatus, StepStats
from pippin.core.request import FinishReason
from pippin.core.speculation.stats import DraftCounts
from pippin.server.histogram import SECONDS_OVERALL, Histogram
from pippin.server.metrics import Metrics

from .conftest import MakeClient

STEP = StepStats(
    duration_s=0.1,
    gap_s=0.02,
    num_prefill_tokens=5,
    num_decode_tokens=3,
    num_preempted=1,
    num_prefix_queries=9,
    num_prefix_hits=4,
    num_disk_hits=1,
    ttft_s=(0.02, 300.0),
    inter_token_s=(0.01,),
    queue_s=(0.5,),
    finished=(
        FinishedStats(
            finish_reason=FinishReason.LENGTH,
            num_prompt_tokens=9,
            num_cached_tokens=4,
            num_output_tokens=3,
            queue_s=0.5,
            ttft_s=0.6,
            e2e_s=2.0,
        ),
    ),
)


def _scrape(client: TestClient) -> dict[str, float]:
    """Every sample, named as it is written, but for buckets."""
    samples = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}"] = sample.value
    return samples


def test_a_step_is_seen_under_both_names(make_client: MakeClient) -> None:
    metrics = Metrics()
    client = make_client(metrics=metrics)
    metrics.observe_step(STEP)
    metrics.observe_step(STEP)

    samples = _scrape(client)

    model = "{model_name=tiny/model}"
    for name, vllm_name, value in (
        ("pippin_prompt_tokens_total", "vllm:prompt_tokens_total", 18),
        ("pippin_output_tokens_total", "vllm:generation_tokens_total", 6),
        ("pippin_prefix_query_tokens_total", "vllm:prefix_cache_queries_total", 18),
        ("pippin_prefix_hit_tokens_total", "vllm:prefix_cache_hits_total", 8),
        ("pippin_preemptions_total", "vllm:num_preemptions_total", 2),
        ("pippin_ttft_seconds_count", "vllm:time_to_first_token_seconds_count", 4),
        ("pippin_ttft_seconds_sum", "vllm:time_to_first_token_seconds_sum", 600.04),
        ("pippin_inter_token_seconds_count", "vllm:inter_token_latency_seconds_count", 2),
        ("pippin_e2e_seconds_sum", "vllm:e2e_request_latency_seconds_sum", 4),
        ("pippin_queue_seconds_sum", "vllm:request_queue_time_seconds_sum", 1),
        ("pippin_step_tokens_sum", "vllm:iteration_tokens_total_sum", 16),
    ):
        assert samples[f"{name}{{}}"] == pytest.approx(value), name
        assert samples[f"{vllm_name}{model}"] == pytest.approx(value), vllm_name
    assert samples["pippin_prefix_memory_hit_tokens_total{}"] == 6
    assert samples["pippin_prefix_disk_hit_tokens_total{}"] == 2
    assert samples["pippin_answers_total{finish_reason=length}"] == 2
    assert samples["vllm:request_success_total{finished_reason=length,model_name=tiny/model}"] == 2
    assert samples["pippin_step_seconds_sum{kind=prefill}"] == pytest.approx(0.2)
    assert samples["pippin_step_seconds_count{kind=decode}"] == 0
    assert samples["pippin_step_gap_seconds_total{}"] == pytest.approx(0.04)
    # Minutes are told apart: they do not all fall into +Inf.
    assert samples["pippin_ttft_seconds_bucket{le=240.0}"] == 2
    assert samples["pippin_ttft_seconds_bucket{le=480.0}"] == 4


def test_steps_are_told_apart_by_what_they_ran(make_client: MakeClient) -> None:
    metrics = Metrics()
    metrics.observe_step(StepStats(duration_s=0.004, num_decode_tokens=2))
    metrics.observe_step(StepStats(duration_s=0.3, num_decode_tokens=2, num_prefill_tokens=512))
    metrics.observe_step(StepStats(finished=STEP.finished))  # an answer given up, and no step

    samples = _scrape(make_client(metrics=metrics))

    assert samples["pippin_step_seconds_sum{kind=decode}"] == pytest.approx(0.004)
    assert samples["pippin_step_seconds_sum{kind=prefill}"] == pytest.approx(0.3)
    assert samples["pippin_steps_total{}"] == 2
    assert samples["pippin_step_tokens_count{}"] == 2
    assert samples["pippin_answers_total{finish_reason=length}"] == 1


def test_disk_and_checkpoints_are_told_where_there_are_any(make_client: MakeClient) -> None:
    engine = FakeEngine()
    client = make_client(engine)
    assert not [name for name in _scrape(client) if "pippin_disk" in name or "checkpoint" in name]
    assert client.get("/health").json()["disk_cache"] is None
    disk = DiskStats(
        folder="/kv",
        num_records=1,
        num_bytes=2,
        max_bytes=3,
        queued_bytes=4,
        is_writing=True,
        spilled=5,
        spilled_bytes=6,
        restored=7,
        restored_bytes=8,
        dropped=9,
        evicted=10,
        corrupt=11,
        missing=12,
    )
    engine.engine_stats = EngineStats(disk=disk, num_states=13, max_states=14)

    samples = _scrape(client)

    names = ("records", "bytes", "max_bytes", "queued_bytes")
    assert [samples[f"pippin_disk_{name}{{}}"] for name in names] == [1, 2, 3, 4]
    names = ("spilled_records", "spilled_bytes", "restored_records", "restored_bytes")
    assert [samples[f"pippin_disk_{name}_total{{}}"] for name in names] == [5, 6, 7, 8]
    names = ("dropped_records", "evicted_records", "corrupt_records", "missing_records")
    assert [samples[f"pippin_disk_{name}_total{{}}"] for name in names] == [9, 10, 11, 12]
    assert samples["pippin_disk_writing{}"] == 1
    assert samples["pippin_checkpoints{}"] == 13
    assert samples["pippin_checkpoints_max{}"] == 14
    assert client.get("/health").json()["disk_cache"] == asdict(disk)
    shown = read_metrics(client.get("/metrics").text)
    assert (shown["disk_evicted_records"], shown["checkpoints"]) == (10, 13)


def test_speculation_is_counted_by_proposer(make_client: MakeClient) -> None:
    engine = FakeEngine()
    client = make_client(engine)
    assert not [name for name in _scrape(client) if "specul" in name or "spec_decode" in name]
    counts = DraftCounts(num_steps=10, num_drafted=40, num_accepted=30, num_emitted=39)
    status = SpeculationStatus(proposer="ngram", counts=counts, gain=None, is_on=False)

    engine.engine_stats = EngineStats(num_traces=7, speculation=status)
    unknown = _scrape(client)
    engine.engine_stats = EngineStats(speculation=replace(status, gain=2.5, is_on=True))
    known = _scrape(client)

    label = "{proposer=ngram}"
    assert unknown["pippin_compiled_graphs_total{}"] == 7
    for name, value in (("steps", 10), ("drafted_tokens", 40), ("accepted_tokens", 30),
                        ("emitted_tokens", 39)):  # fmt: skip
        assert unknown[f"pippin_speculation_{name}_total{label}"] == value
    model = "{model_name=tiny/model}"
    assert unknown[f"vllm:spec_decode_num_draft_tokens_total{model}"] == 40
    assert unknown[f"vllm:spec_decode_num_accepted_tokens_total{model}"] == 30
    assert unknown[f"pippin_speculation_on{label}"] == 0
    assert f"pippin_speculation_gain_ratio{label}" not in unknown
    assert known[f"pippin_speculation_on{label}"] == 1
    assert known[f"pippin_speculation_gain_ratio{label}"] == 2.5


def test_gauges_are_the_engine_s_at_the_time_of_the_scrape(make_client: MakeClient) -> None:
    engine = FakeEngine()
    client = make_client(engine)

    samples = _scrape(client)

    assert samples["pippin_running_answers{}"] == 1
    assert samples["vllm:num_requests_running{model_name=tiny/model}"] == 1
    assert samples["vllm:num_requests_waiting{model_name=tiny/model}"] == 2
    assert samples["vllm:kv_cache_usage_perc{model_name=tiny/model}"] == 0.5
    assert samples["pippin_kv_blocks{state=free}"] == 4
    assert samples["pippin_kv_blocks{state=evictable}"] == 1
    assert samples["pippin_kv_blocks{state=used}"] == 5
    assert samples["pippin_engine_up{}"] == 1
    version = importlib.metadata.version("pippin")
    assert samples[f"pippin_build_info{{model=tiny/model,version={version}}}"] == 1
    engine.healthy = False
    assert _scrape(client)["pippin_engine_up{}"] == 0


def test_requests_are_counted_by_their_outcome(make_client: MakeClient) -> None:
    engine = FakeEngine()
    client = make_client(engine)
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}

    client.post("/v1/chat/completions", json=chat)
    client.post("/v1/chat/completions", json={**chat, "stream": True})
    client.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
    engine.script = (Fail("broken"),)
    client.post("/v1/chat/completions", json=chat)
    client.post("/v1/chat/completions", json={**chat, "stream": True})

    samples = _scrape(client)
    chat_path = "endpoint=/v1/chat/completions"
    assert samples[f"pippin_requests_total{{{chat_path},outcome=completed}}"] == 2
    assert samples[f"pippin_requests_total{{{chat_path},outcome=failed}}"] == 2
    assert samples["pippin_requests_total{endpoint=/v1/completions,outcome=completed}"] == 1
    http = "method=POST,path=/v1/chat/completions"
    assert samples[f"pippin_http_requests_total{{{http},status=200}}"] == 3
    assert samples[f"pippin_http_requests_total{{{http},status=500}}"] == 1
    assert samples[f"pippin_http_request_seconds_count{{{http},status=200}}"] == 3


def test_two_apps_share_nothing(make_client: MakeClient) -> None:
    first, second = make_client(), make_client()
    first.get("/version")

    name = "pippin_http_requests_total{method=GET,path=/version,status=200}"
    assert _scrape(first)[name] == 1
    assert name not in _scrape(second)


def test_threads_lose_no_step() -> None:
    metrics = Metrics()

    def observe() -> None:
        for _ in range(2000):
            metrics.observe_step(STEP)

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert metrics.num_steps == 8000
    assert metrics.ttft_s.buckets()[-1] == ("+Inf", 16000)


@given(st.lists(st.floats(min_value=0, max_value=1e5)))
def test_a_bucket_counts_what_is_not_above_its_bound(values: list[float]) -> None:
    histogram = Histogram(SECONDS_OVERALL)
    histogram.observe(values)

    for bound, count in histogram.buckets():
        assert count == sum(value <= float(bound) for value in values)
    assert histogram.total == pytest.approx(sum(values))
