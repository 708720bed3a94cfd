"""Puts load on a server: so many sessions at once, or so many begun each second.

With a concurrency, each of its clients begins a session when its last one has ended. With a rate,
sessions begin when they are due, however many still run.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .answer import Answer
from .asking import Asker
from .plan import Arrival, Level
from .sessions import Session

# A server that refuses at once is not asked again and again within this time.
_PAUSE_AFTER_FAILURE_S = 0.1


@dataclass(slots=True)
class LoadRun:
    """What came of one load.

    Attributes:
        wall_s: From the first request to the end of the last answer.
        cpu_s: What this thread needed of a processor for it.
        num_cut: Sessions that were broken off.
    """

    answers: list[Answer] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    num_cut: int = 0


class LoadGenerator:
    """Runs one load.

    Args:
        on_answer: Told of each, failed ones too.
        stop: Set to break off.
    """

    def __init__(
        self, asker: Asker, *, on_answer: Callable[[Answer], None], stop: asyncio.Event
    ) -> None:
        self._asker = asker
        self._on_answer = on_answer
        self._stop = stop
        self._run = LoadRun()

    async def run(
        self, sessions: Iterator[Session], level: Level, *, duration_s: float | None, seed: str
    ) -> LoadRun:
        """Until there are no sessions left, or no more may begin, or `stop` is set.

        Args:
            duration_s: No session begins later; those that run are waited for.
            seed: Of the arrivals.
        """
        self._run = LoadRun()
        begun_at, cpu = time.perf_counter(), time.thread_time()
        until = begun_at + duration_s if duration_s else float("inf")
        if level.concurrency is not None:
            clients = (self._keep_asking(sessions, until) for _ in range(level.concurrency))
            work: asyncio.Future[Any] = asyncio.gather(*clients)
        else:
            dues = due_times(level, random.Random(seed))
            work = asyncio.ensure_future(self._begin_when_due(sessions, dues, begun_at, until))
        stopped = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        work.cancel()
        results = await asyncio.gather(work, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]
        ends = [answer.ended_at for answer in self._run.answers]
        # Time in which nothing came any more belongs to a load that was cut.
        end = time.perf_counter() if self._run.num_cut or not ends else max(ends)
        self._run.wall_s = end - begun_at
        self._run.cpu_s = time.thread_time() - cpu
        return self._run

    async def _keep_asking(self, sessions: Iterator[Session], until: float) -> None:
        while time.perf_counter() < until and (session := next(sessions, None)) is not None:
            begun_at = time.perf_counter()
            if not await self._ask(session):
                pause_s = begun_at + _PAUSE_AFTER_FAILURE_S - time.perf_counter()
                await asyncio.sleep(max(0.0, pause_s))

    async def _begin_when_due(
        self, sessions: Iterator[Session], dues: Iterator[float], begun_at: float, until: float
    ) -> None:
        async with asyncio.TaskGroup() as tasks:
            for session in sessions:
                due_at = begun_at + next(dues)
                if due_at >= until:
                    return
                await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
                tasks.create_task(self._ask(session, late_s=time.perf_counter() - due_at))

    async def _ask(self, session: Session, *, late_s: float | None = None) -> bool:
        """Whether all went well."""
        is_good = True
        try:
            async for answer in self._asker.ask(session):
                answer.late_s, late_s = late_s, None
                is_good = answer.failure is None
                self._run.answers.append(answer)
                self._on_answer(answer)
        except asyncio.CancelledError:
            self._run.num_cut += 1
            raise
        return is_good


def due_times(level: Level, rng: random.Random) -> Iterator[float]:
    """When sessions of a rate begin, in seconds; the first at once."""
    assert level.request_rate is not None
    due = 0.0
    while True:
        yield due
        is_poisson = level.arrival is Arrival.POISSON
        due += rng.expovariate(level.request_rate) if is_poisson else 1 / level.request_rate
