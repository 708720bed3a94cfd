"""The report: what was asked, of whom, by whom, and what came of it. Its JSON is the file format.

``--compare`` reads it back, so a change of its form changes `FORMAT`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from .figures import Figures
from .plan import BenchPlan, Level, Workload
from .prompt_files import file_digest

KIND, FORMAT = "pippin bench-serve", 1
# Above this share of prompt tokens from a cache, a chat template's few are no explanation.
_SUSPICIOUS_CACHED_SHARE = 0.05
_BUSY_CLIENT_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class LevelReport:
    """One step of the sweep, and the figures of all its answers and of parts of them."""

    level: Level
    figures: tuple[Figures, ...]


@dataclass(slots=True, kw_only=True)
class Report:
    """All there is to say.

    Attributes:
        started: ISO 8601, with the zone.
        workload: As JSON, see `describe_workload`.
        load: The same of how many requests there were.
        slo: In milliseconds.
        cut: Whether it was broken off.
        comparison: See `compare`.
    """

    started: str
    model: str
    server: dict[str, Any]
    client: dict[str, Any]
    seed: int
    workload: dict[str, Any]
    load: dict[str, Any]
    slo: dict[str, float]
    levels: list[LevelReport] = field(default_factory=list)
    cut: bool = False
    comparison: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Without what is ``None`` because it does not apply to a level."""
        fields = asdict(self)
        fields["levels"] = [
            {
                **level.level.to_json(),
                "figures": [asdict(figures) for figures in level.figures],
            }
            for level in self.levels
        ]
        return {"kind": KIND, "format": FORMAT, "notes": self.notes(), **fields}

    def all_figures(self) -> Iterable[tuple[Level, Figures]]:
        """In order."""
        return ((entry.level, figures) for entry in self.levels for figures in entry.figures)

    def has_succeeded(self) -> bool:
        """Whether there is at least one good answer."""
        return any(figures.succeeded for _, figures in self.all_figures())

    def notes(self) -> list[str]:
        """What a reader must know to trust the figures, or not to."""
        return list(self._notes())

    def _notes(self) -> Iterable[str]:
        if self.cut:
            yield "Cut by an interrupt: answers that had not ended are not counted."
        if self.workload["length_unit"] == "word":
            yield "The server counts no tokens: prompts have the wanted lengths in words."
        everything = [figures for _, figures in self.all_figures()]
        if any(figures.output_unit == "chunk" for figures in everything):
            yield (
                "The server gave no usage: output is counted in chunks of its stream, and TPOT is "
                "the time of a chunk."
            )
        cached = max((cached_share(figures) or 0.0 for figures in everything), default=0.0)
        if self.workload["is_unique"] and cached > _SUSPICIOUS_CACHED_SHARE:
            yield (
                f"Up to {cached:.0%} of the prompt tokens came from the server's cache, although "
                "all prompts differ from their first words: a long chat template, or a seed that "
                "this server has seen before."
            )
        busy = max((figures.client_cpu_share or 0.0 for figures in everything), default=0.0)
        if busy > _BUSY_CLIENT_SHARE:
            yield (
                f"This client needed up to {busy:.0%} of a processor: it may have been slower than "
                "the server."
            )


def cached_share(figures: Figures) -> float | None:
    """Of the prompt tokens; ``None`` if the server does not say."""
    if figures.cached_tokens is None or not figures.input_tokens:
        return None
    return figures.cached_tokens / figures.input_tokens


def describe_workload(workload: Workload, *, length_unit: str) -> dict[str, Any]:
    """What two runs must have in common to be compared.

    Args:
        length_unit: Of input: ``token`` or ``word``.
    """
    fields = asdict(workload)
    fields.pop("file")
    if workload.file is not None:
        fields["file_sha256"] = file_digest(workload.file)
        fields.pop("input_tokens")
    if not workload.images:
        fields.pop("image_size")
    repeats = workload.turns > 1 or workload.prefix_tokens or workload.kind == "prefix-hit"
    is_unique = workload.unique_prefix and not repeats
    return {
        **json.loads(json.dumps(fields)),
        "length_unit": length_unit,
        "is_unique": is_unique,
    }


def describe_load(plan: BenchPlan) -> dict[str, Any]:
    """How much there was."""
    return {
        "num_requests": list(dict.fromkeys(filter(None, map(plan.requests_at, plan.levels)))),
        "duration_s": plan.duration_s,
        "warmup": plan.warmup,
        "timeout_s": plan.timeout_s,
    }


def workload_line(workload: dict[str, Any]) -> str:
    """For people: the workload in a few words."""
    parts = [workload["kind"], workload["endpoint"]]
    unit = workload["length_unit"]
    if length := workload.get("input_tokens"):
        parts.append(f"input {_length(length)} {unit}s")
    for name, text in (
        ("prefix_tokens", "after a prefix of {} " + unit + "s"),
        ("num_prefixes", "{} prefixes"),
        ("turns", "{} turns"),
        ("images", "{} images"),
        ("inputs", "{} inputs a request"),
    ):
        if workload[name] > (name != "prefix_tokens" and name != "images"):
            parts.append(text.format(workload[name]))
    if size := workload.get("image_size"):
        parts.append("{}x{} pixels".format(*size))
    if length := workload["output_tokens"]:
        most = "" if workload["ignore_eos"] else " at most"
        parts.append(f"output {_length(length)} tokens{most}")
    if digest := workload.get("file_sha256"):
        parts.append(f"file {digest[:12]}")
    if workload["endpoint"] != "embeddings":
        parts.append(f"temperature {workload['temperature']:g}")
    if workload["extra_body"]:
        parts.append(f"extra body {json.dumps(workload['extra_body'], ensure_ascii=False)}")
    return ", ".join(parts)


def server_line(server: dict[str, Any]) -> str:
    """For people: the server in a few words."""
    health = server["health"]
    details = health.get("details") if isinstance(health, dict) else f"health {health}"
    said = [f"version {server['version']}", f"header {server['server_header']}"]
    if isinstance(details, dict):
        said += [f"{name} {value}" for name, value in details.items() if _is_plain(value)]
    elif details:
        said.append(str(details))
    return ", ".join([server["url"], *said])


def client_line(client: dict[str, Any]) -> str:
    """For people: the client in a few words."""
    memory = client["memory_bytes"]
    shown = f"{memory / 2**30:.1f} GiB" if isinstance(memory, int) else memory
    return (
        f"pippin {client['pippin']}, Python {client['python']}, {client['platform']}, "
        f"processor {client['processor']}, {client['cores']} cores, memory {shown}"
    )


def _length(length: dict[str, int]) -> str:
    return f"{length['mean']}" + (f"±{length['spread']}" if length["spread"] else "")


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float) and len(str(value)) < 40
