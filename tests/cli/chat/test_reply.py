"""An answer is timed, and what came of one that breaks off is kept."""

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from pippin.cli.chat.backend import Delta, End, Usage
from pippin.cli.chat.reply import Reply, follow_reply
from pippin.core.errors import PippinError

USAGE = Usage(prompt_tokens=1200, cached_tokens=1000, output_tokens=11, reasoning_tokens=3)


class View:
    def __init__(self) -> None:
        self.shown: list[Delta] = []
        self.num_refreshes = 0

    def feed(self, delta: Delta) -> None:
        self.shown.append(delta)

    def refresh(self) -> None:
        self.num_refreshes += 1


async def play(
    *events: Delta | End | Exception | Callable[[], object],
) -> AsyncGenerator[Delta | End, None]:
    for event in events:
        await asyncio.sleep(0)
        if isinstance(event, Exception):
            raise event
        if callable(event):
            event()
            await asyncio.sleep(60)
            continue
        yield event


def test_a_whole_answer() -> None:
    view, seen = View(), list[str]()
    reply = asyncio.run(
        follow_reply(
            play(Delta("hm", is_reasoning=True), Delta("a"), Delta("b"), End("stop", USAGE)),
            view,
            on_progress=lambda so_far: seen.append(so_far.text),
        )
    )
    assert (reply.reasoning, reply.text, reply.finish_reason) == ("hm", "ab", "stop")
    assert [delta.text for delta in view.shown] == ["hm", "a", "b"]
    assert view.num_refreshes >= 1
    assert seen == ["", "a", "ab"]
    assert reply.is_whole
    assert reply.ttft_s is not None
    assert reply.ttft_s + reply.decode_s <= reply.total_s


def test_a_failure_keeps_what_came() -> None:
    reply = asyncio.run(follow_reply(play(Delta("a"), PippinError("no more")), View()))
    assert (reply.text, str(reply.error), reply.is_whole) == ("a", "no more", False)
    assert reply.stats_line().endswith("broken off")


def test_a_cancelled_answer_is_closed_and_kept() -> None:
    closed = []

    async def run() -> Reply:
        task = asyncio.current_task()
        assert task is not None

        async def events() -> AsyncGenerator[Delta | End, None]:
            try:
                async for event in play(Delta("a"), task.cancel):
                    yield event
            finally:
                closed.append(True)

        return await follow_reply(events(), View())

    reply = asyncio.run(run())
    assert (reply.text, reply.finish_reason, reply.error) == ("a", "interrupted", None)
    assert closed == [True]


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (
            Reply(text="x", finish_reason="stop", usage=USAGE, ttft_s=0.35, decode_s=0.5),
            "11 tokens at 20.0 tokens/s · TTFT 350 ms · prompt 1,200 · cached 1,000",
        ),
        (
            Reply(finish_reason="length", usage=Usage(output_tokens=1), ttft_s=0.35, decode_s=0.0),
            "1 token · TTFT 350 ms · cut off at the most tokens",
        ),
        (Reply(finish_reason="stop", ttft_s=2), "TTFT 2.0 s"),
        (Reply(finish_reason="interrupted"), "interrupted"),
        (Reply(finish_reason="content_filter"), "content_filter"),
    ],
)
def test_the_line_says_what_is_known_and_no_more(reply: Reply, line: str) -> None:
    assert reply.stats_line() == line


def test_json_has_every_field_whatever_is_known() -> None:
    whole = Reply(text="x", finish_reason="stop", usage=USAGE, ttft_s=0.25, decode_s=0.5, total_s=1)
    assert whole.to_json("m") == {
        "model": "m",
        "text": "x",
        "reasoning": "",
        "finish_reason": "stop",
        "usage": {
            "prompt_tokens": 1200,
            "cached_tokens": 1000,
            "output_tokens": 11,
            "reasoning_tokens": 3,
        },
        "timings": {"ttft_s": 0.25, "total_s": 1, "tokens_per_s": 20.0},
    }
    assert Reply().to_json("m")["timings"]["tokens_per_s"] is None
