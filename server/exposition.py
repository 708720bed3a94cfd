"""`Metrics` and `EngineStats` in the words of Prometheus.

Most numbers have two names: ours, and the one that dashboards made for vLLM ask for.

Source: prometheus.io/docs/instrumenting/exposition_formats; the names from vLLM's page on
production metrics.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pippin.core.cache.disk.stats import DiskStats
from pippin.core.engine.client import EngineClient
from pippin.core.engine.stats import SpeculationStatus

from .histogram import Histogram
from .metrics import Metrics


def make_registry(metrics: Metrics, engine: EngineClient, *, version: str) -> CollectorRegistry:
    """A registry of its own for each app: two apps in a process do not share numbers."""
    registry = CollectorRegistry()
    registry.register(_ServerCollector(metrics, engine, version))
    ProcessCollector(registry=registry)
    return registry


def render_metrics(registry: CollectorRegistry) -> bytes:
    """The text format, version 0.0.4."""
    return generate_latest(registry)


class _ServerCollector(Collector):
    def __init__(self, metrics: Metrics, engine: EngineClient, version: str) -> None:
        self._metrics = metrics
        self._engine = engine
        self._version = version
        self._model = engine.model_card.model_id
        self._model_label = {"model_name": self._model}

    def collect(self) -> Iterator[Metric]:
        """Everything, as of now."""
        yield from self._gauges()
        with self._metrics.reading():
            # A list: the lock must not outlive this call if the reader stops half way.
            families = [*self._counters(), *self._histograms(), *self._http()]
        yield from families

    def _gauges(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        build = GaugeMetricFamily("pippin_build_info", "Always 1.", labels=["version", "model"])
        build.add_metric([self._version, self._model], 1)
        yield build
        yield GaugeMetricFamily(
            "pippin_engine_up", "Whether the engine runs.", value=self._engine.is_healthy()
        )
        for name, vllm_name, text, value in (
            ("running_answers", "num_requests_running", "Answers being made.", stats.num_running),
            ("waiting_requests", "num_requests_waiting", "Waiting requests.", stats.num_waiting),
            ("kv_usage_ratio", "kv_cache_usage_perc", "Used KV blocks, 0 to 1.", stats.kv_usage),
        ):
            yield GaugeMetricFamily(f"pippin_{name}", text, value=value)
            yield _labelled(GaugeMetricFamily, f"vllm:{vllm_name}", text, self._model_label, value)
        blocks = GaugeMetricFamily("pippin_kv_blocks", "KV blocks by state.", labels=["state"])
        num_idle = stats.num_free_blocks + stats.num_evictable_blocks
        blocks.add_metric(["free"], stats.num_free_blocks)
        blocks.add_metric(["evictable"], stats.num_evictable_blocks)
        blocks.add_metric(["used"], stats.num_blocks - num_idle)
        yield blocks
        yield GaugeMetricFamily(
            "pippin_kv_cache_bytes", "Memory of the KV store.", value=stats.kv_cache_bytes
        )
        yield GaugeMetricFamily(
            "pippin_active_memory_bytes",
            "Memory in use on the device.",
            value=stats.active_memory_bytes,
        )
        yield CounterMetricFamily(
            "pippin_compiled_graphs",
            "Graphs of steps compiled; steady after the warm-up.",
            value=stats.num_traces,
        )
        if stats.max_states:
            for name, text, value in (
                ("checkpoints", "Saved states of recurrent layers.", stats.num_states),
                ("checkpoints_max", "The most there may be.", stats.max_states),
            ):
                yield GaugeMetricFamily(f"pippin_{name}", text, value=value)
        if stats.disk is not None:
            yield from _disk(stats.disk)
        if stats.speculation is not None:
            yield from self._speculation(stats.speculation)

    def _speculation(self, status: SpeculationStatus) -> Iterator[Metric]:
        counts, labels = status.counts, {"proposer": status.proposer}
        for name, vllm_name, text, count in (
            ("steps", None, "Steps with speculation on, times answers.", counts.num_steps),
            ("drafted_tokens", "draft", "Drafted tokens that were verified.", counts.num_drafted),
            ("accepted_tokens", "accepted", "Drafted tokens drawn.", counts.num_accepted),
            ("emitted_tokens", None, "Tokens that these steps drew.", counts.num_emitted),
        ):
            yield _labelled(CounterMetricFamily, f"pippin_speculation_{name}", text, labels, count)
            if vllm_name is not None:
                vllm_name = f"vllm:spec_decode_num_{vllm_name}_tokens"
                yield _labelled(CounterMetricFamily, vllm_name, text, self._model_label, count)
        for name, text, value in (
            ("on", "Whether the next step verifies drafts.", status.is_on),
            ("gain_ratio", "Estimated speed with drafts by that without.", status.gain),
        ):
            if value is not None:  # the gain is not known at once
                yield _labelled(
                    GaugeMetricFamily, f"pippin_speculation_{name}", text, labels, value
                )

    def _counters(self) -> Iterator[Metric]:
        metrics = self._metrics
        for name, vllm_name, text, value in (
            ("prompt_tokens", "prompt_tokens", "Prompt tokens run or found.",
             metrics.num_prompt_tokens),
            ("output_tokens", "generation_tokens", "Tokens drawn.", metrics.num_output_tokens),
            ("prefix_query_tokens", "prefix_cache_queries", "Prompt tokens looked up.",
             metrics.num_prefix_queries),
            ("prefix_hit_tokens", "prefix_cache_hits", "Prompt tokens found in the prefix index.",
             metrics.num_prefix_hits),
            ("preemptions", "num_preemptions", "Answers that lost their blocks for a while.",
             metrics.num_preempted),
        ):  # fmt: skip
            yield CounterMetricFamily(f"pippin_{name}", text, value=value)
            yield _labelled(
                CounterMetricFamily, f"vllm:{vllm_name}", text, self._model_label, value
            )
        for source, count in (
            ("memory", metrics.num_prefix_hits - metrics.num_disk_hits),
            ("disk", metrics.num_disk_hits),
        ):
            yield CounterMetricFamily(
                f"pippin_prefix_{source}_hit_tokens", f"Those found in the {source}.", value=count
            )
        yield CounterMetricFamily("pippin_steps", "Engine steps.", value=metrics.num_steps)
        yield CounterMetricFamily(
            "pippin_step_gap_seconds",
            "Time in which there was work but no step under way.",
            value=metrics.step_gap_s,
        )

        text = "Answers that ended, by finish reason."
        answers = CounterMetricFamily("pippin_answers", text, labels=["finish_reason"])
        vllm_answers = CounterMetricFamily(
            "vllm:request_success", text, labels=["model_name", "finished_reason"]
        )
        for reason, count in metrics.answers.items():
            answers.add_metric([reason.value], count)
            vllm_answers.add_metric([self._model, reason.value], count)
        yield answers
        yield vllm_answers
        requests = CounterMetricFamily(
            "pippin_requests", "Generation requests that ended.", labels=["endpoint", "outcome"]
        )
        for labels, count in metrics.requests.items():
            requests.add_metric(labels, count)
        yield requests

    def _histograms(self) -> Iterator[Metric]:
        metrics = self._metrics
        for name, vllm_name, text, histogram in (
            ("ttft_seconds", "time_to_first_token_seconds", "Arrival to first token.",
             metrics.ttft_s),
            ("inter_token_seconds", "inter_token_latency_seconds", "Between two tokens.",
             metrics.inter_token_s),
            ("e2e_seconds", "e2e_request_latency_seconds", "Arrival to end.", metrics.e2e_s),
            ("queue_seconds", "request_queue_time_seconds", "Arrival to first scheduled.",
             metrics.queue_s),
            ("step_tokens", "iteration_tokens_total", "Tokens run per step.", metrics.step_tokens),
        ):  # fmt: skip
            yield _histogram(f"pippin_{name}", text, {}, histogram)
            yield _histogram(f"vllm:{vllm_name}", text, self._model_label, histogram)

        steps = HistogramMetricFamily(
            "pippin_step_seconds", "Steps: tokens drawn only, or with a prefill.", labels=["kind"]
        )
        for kind, histogram in metrics.step_s.items():
            steps.add_metric([kind], histogram.buckets(), histogram.total)
        yield steps

    def _http(self) -> Iterator[Metric]:
        labels = ["path", "method", "status"]
        requests = CounterMetricFamily("pippin_http_requests", "HTTP requests.", labels=labels)
        seconds = HistogramMetricFamily(
            "pippin_http_request_seconds", "First byte in to last byte out.", labels=labels
        )
        for (path, method, status), histogram in self._metrics.http_seconds.items():
            buckets = histogram.buckets()
            requests.add_metric([path, method, str(status)], buckets[-1][1])
            seconds.add_metric([path, method, str(status)], buckets, histogram.total)
        yield requests
        yield seconds


def _disk(disk: DiskStats) -> Iterator[Metric]:
    for name, text, value in (
        ("bytes", "Bytes in the folder of the disk cache, of all servers.", disk.num_bytes),
        ("max_bytes", "The most there may be.", disk.max_bytes),
        ("queued_bytes", "Bytes that wait to be written.", disk.queued_bytes),
        ("records", "Blocks and states of this model on the disk.", disk.num_records),
        ("writing", "Whether the disk takes them.", disk.is_writing),
    ):
        yield GaugeMetricFamily(f"pippin_disk_{name}", text, value=value)
    for name, text, value in (
        ("spilled_records", "Records written.", disk.spilled),
        ("spilled_bytes", "What they held.", disk.spilled_bytes),
        ("restored_records", "Records read.", disk.restored),
        ("restored_bytes", "What they held.", disk.restored_bytes),
        ("dropped_records", "Records not written: disk busy, full or gone.", disk.dropped),
        ("evicted_records", "Records deleted to make room.", disk.evicted),
        ("corrupt_records", "Records found damaged, and deleted.", disk.corrupt),
        ("missing_records", "Records that somebody else had deleted.", disk.missing),
    ):
        yield CounterMetricFamily(f"pippin_disk_{name}", text, value=value)


def _labelled(
    family: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    text: str,
    labels: dict[str, str],
    value: float,
) -> Metric:
    metric = family(name, text, labels=list(labels))
    metric.add_metric(list(labels.values()), value)
    return metric


def _histogram(name: str, text: str, labels: dict[str, str], histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), histogram.buckets(), histogram.total)
    return family
