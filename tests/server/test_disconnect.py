"""Callers that leave, over real sockets: what ran for them is aborted, and nothing else is."""

from __future__ import annotations

import socket

import pytest
from fake_engine import FakeEngine, Hold
from live_server import TIMEOUT_S, posted, read_to_end, read_until, serve

CHAT: dict[str, object] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, object] = {"model": "tiny", "prompt": ["one", "two"]}


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)]
)
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("script", [(Hold(), "a"), ("a", Hold(), "b")])
def test_leaving_aborts_every_generation(
    path: str, body: dict[str, object], stream: bool, script: tuple[str | Hold, ...]
) -> None:
    engine = FakeEngine(script)
    with serve(engine) as server:
        with posted(server.port, path, {**body, "stream": stream}):
            assert engine.holding.wait(TIMEOUT_S)
            assert not engine.aborted.is_set()

        assert engine.aborted.wait(TIMEOUT_S)
        # Which is set at the first abort; the request's end comes after the last.
        server.wait_idle()
        assert all(it.generation.num_aborts for it in engine.submissions)


def test_an_abrupt_reset_aborts_too() -> None:
    engine = FakeEngine(("a", Hold(), "b"))
    with serve(engine) as server:
        with posted(server.port, "/v1/chat/completions", {**CHAT, "stream": True}) as connection:
            read_until(connection, b'"content":"a"')
            # Closing with a linger of zero sends RST instead of FIN.
            connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
            )

        assert engine.aborted.wait(TIMEOUT_S)


def test_the_others_go_on() -> None:
    engine = FakeEngine(("a", Hold(), "b"))
    with serve(engine) as server:
        with posted(server.port, "/v1/chat/completions", {**CHAT, "stream": True}) as staying:
            read_until(staying, b'"content":"a"')
            with posted(server.port, "/v1/chat/completions", {**CHAT, "stream": True}) as leaving:
                read_until(leaving, b'"content":"a"')
            assert engine.aborted.wait(TIMEOUT_S)
            engine.release()
            rest = read_to_end(staying)

        assert b'"content":"b"' in rest
        assert b"data: [DONE]" in rest


def test_an_answer_that_ended_was_not_aborted_before() -> None:
    engine = FakeEngine(("a", "b"))
    with serve(engine) as server:
        with posted(server.port, "/v1/chat/completions", CHAT) as connection:
            answer = read_to_end(connection)

        assert b'"content":"ab"' in answer
        assert not engine.aborted.is_set()
