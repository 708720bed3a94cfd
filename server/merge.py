"""Outputs of several generations as one stream, each as soon as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from pippin.core.engine.client import Generation
from pippin.core.request import RequestOutput


async def merge_outputs(
    generations: Sequence[Generation],
) -> AsyncGenerator[tuple[int, Sequence[RequestOutput]], None]:
    """Yield ``(index of the generation, what has arrived from it)``.

    Raises:
        EngineStoppedError: The engine went away in the middle.
    """
    if len(generations) == 1:
        # The common case, and the one that must be fast: no task between engine and writer.
        async for outputs in generations[0]:
            yield 0, outputs
        return
    sources = [aiter(generation) for generation in generations]
    waiting = {_next_of(source): index for index, source in enumerate(sources)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = waiting.pop(task)
                arrived = task.result()
                if arrived is not None:
                    waiting[_next_of(sources[index])] = index
                    yield index, arrived
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _next_of(
    source: AsyncIterator[Sequence[RequestOutput]],
) -> asyncio.Task[Sequence[RequestOutput] | None]:
    async def step() -> Sequence[RequestOutput] | None:
        return await anext(source, None)

    return asyncio.ensure_future(step())
