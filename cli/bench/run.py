"""A whole run: who is there, what words come to, every level of load, and the report."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import typer
import uvloop

from pippin.core.errors import ConfigError, PippinError

from ..console import make_data_console, make_talk_console
from ..errors import INTERRUPTED
from .about import describe_client, describe_server, find_model, knows_ignore_eos
from .asking import Asker
from .calibration import calibrate
from .compare import check_levels, check_same, compare, read_base
from .figures import Figures, make_figures
from .http_client import HttpClient
from .load import LoadGenerator, LoadRun
from .plan import BenchPlan, Format, Level, WorkloadKind
from .progress import BenchProgress
from .report import LevelReport, Report, describe_load, describe_workload
from .sessions import Session, SessionMaker, read_file
from .terminal import print_report
from .words import TokenScale
from .writers import write

REGRESSED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where the report goes, and what it is held against."""

    form: Format
    file: Path | None
    base: Path | None
    max_regression: float


def run_bench(plan: BenchPlan, output: Output) -> None:
    """Measure and print.

    Raises:
        PippinError: Nothing could be measured.
        typer.Exit: Everything failed, or it was cut, or there is a regression.
    """
    if output.file is not None and not output.file.parent.is_dir():
        raise ConfigError(f"--output-file: there is no folder {output.file.parent}")
    base = read_base(output.base) if output.base else None
    try:
        report = uvloop.run(_Bench(plan, base).run())
    except KeyboardInterrupt:  # before anything was measured, or for the second time
        print("interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if base is not None:
        report.comparison = compare(base, report, max_regression=output.max_regression)
    _put_out(report, output)
    if report.cut:
        raise typer.Exit(INTERRUPTED)
    if not report.has_succeeded():
        raise PippinError("all requests failed")
    if report.comparison and report.comparison["regressions"]:
        raise typer.Exit(REGRESSED)


def _put_out(report: Report, output: Output) -> None:
    if output.file is not None:
        try:
            output.file.write_text(write(report, output.form), encoding="utf-8")
        except OSError as error:
            raise PippinError(f"{output.file} cannot be written: {error.strerror}") from error
    if output.form is Format.TABLE or output.file is not None:
        print_report(make_data_console(), report)
    else:
        print(write(report, output.form), end="")


class _Bench:
    def __init__(self, plan: BenchPlan, base: dict[str, Any] | None) -> None:
        self._plan = plan
        self._base = base
        self._prompts = read_file(plan.workload)
        self._progress = BenchProgress(make_talk_console())

    async def run(self) -> Report:
        plan = self._plan
        client = HttpClient(plan.url, api_key=plan.api_key, timeout_s=plan.timeout_s)
        try:
            server = await describe_server(client, plan.url)
            model = plan.model or await find_model(client)
            workload = plan.workload
            if workload.ignore_eos is None:
                is_made_up = not workload.kind.is_file and workload.output_tokens is not None
                knows = is_made_up and await knows_ignore_eos(client, workload.endpoint)
                workload = replace(workload, ignore_eos=knows)
            asker = Asker(client, workload, model)
            is_file = workload.kind.is_file
            scale = None if is_file else await calibrate(asker, plan.seed)
            report = Report(
                started=datetime.now().astimezone().isoformat(timespec="seconds"),
                model=model,
                server=server,
                client=describe_client(),
                seed=plan.seed,
                workload=describe_workload(
                    workload, length_unit="token" if scale or is_file else "word"
                ),
                load=describe_load(plan),
                slo=dict(plan.slo),
            )
            if self._base is not None:
                check_same(self._base, report)
                check_levels(self._base, [level.to_json() for level in plan.levels])
            maker = SessionMaker(workload, self._prompts, scale or TokenScale(), plan.seed)
            await self._measure(report, asker, maker)
        finally:
            client.close()
        return report

    async def _measure(self, report: Report, asker: Asker, maker: SessionMaker) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            stop.set()
            loop.remove_signal_handler(signal.SIGINT)  # the next one ends everything

        loop.add_signal_handler(signal.SIGINT, interrupt)
        generator = LoadGenerator(asker, on_answer=self._progress.count, stop=stop)
        for level in self._plan.levels:
            await self._warm_up(generator, maker, level)
            if not stop.is_set():
                figures = await self._measure_level(generator, maker, level)
                report.levels.append(LevelReport(level, tuple(figures)))
            if stop.is_set():
                report.cut = True
                return
        loop.remove_signal_handler(signal.SIGINT)

    async def _warm_up(self, generator: LoadGenerator, maker: SessionMaker, level: Level) -> None:
        sessions = list(islice(maker.make(f"warm-up/{level.title}"), self._plan.warmup))
        if sessions:
            at_once = Level(concurrency=level.concurrency or len(sessions))
            async with self._progress.show("warm-up", total=None):
                await generator.run(iter(sessions), at_once, duration_s=None, seed="")

    async def _measure_level(
        self, generator: LoadGenerator, maker: SessionMaker, level: Level
    ) -> list[Figures]:
        sessions = maker.make(level.title)
        num_requests, turns = self._plan.requests_at(level), self._plan.workload.turns
        if num_requests is not None:
            # Made now: while requests run, it would delay the reading of answers.
            sessions = iter(list(islice(sessions, -(-num_requests // turns))))
        if self._plan.workload.kind is not WorkloadKind.PREFIX_HIT:
            return self._figures(await self._load(generator, sessions, level, ""))
        sent: list[Session] = []
        cold = await self._load(generator, _noting(sessions, sent), level, "cold")
        hit = await self._load(generator, iter(sent), level, "hit", is_timed=False)
        return [*self._figures(cold, "cold"), *self._figures(hit, "hit")]

    async def _load(
        self,
        generator: LoadGenerator,
        sessions: Iterator[Session],
        level: Level,
        part: str,
        *,
        is_timed: bool = True,
    ) -> LoadRun:
        duration_s = self._plan.duration_s if is_timed else None
        what = f"{level.title} {part}".rstrip()
        total = duration_s or self._plan.requests_at(level)
        async with self._progress.show(what, total=total, is_timed=duration_s is not None):
            seed = f"{self._plan.seed}/{what}/arrivals"
            run = await generator.run(sessions, level, duration_s=duration_s, seed=seed)
        self._progress.say_state(what)
        return run

    def _figures(self, run: LoadRun, part: str = "") -> list[Figures]:
        """Of all answers, and of those under each label."""
        slo = self._plan.slo
        labels = sorted({answer.label for answer in run.answers} - {""})
        return [
            make_figures(
                run.answers,
                part=part,
                wall_s=run.wall_s,
                cpu_s=run.cpu_s,
                cut=run.num_cut,
                slo=slo,
            ),
            *(
                make_figures(
                    [answer for answer in run.answers if answer.label == label],
                    part=label,
                    wall_s=None,
                    slo=slo,
                )
                for label in labels
            ),
        ]


def _noting(sessions: Iterator[Session], sent: list[Session]) -> Iterator[Session]:
    for session in sessions:
        sent.append(session)
        yield session
