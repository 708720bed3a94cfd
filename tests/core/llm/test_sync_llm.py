"""`LLM` from threads, beside a running event loop, interrupted, closed and forgotten."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest
from llm_checks import LONG, TIMEOUT_S, greedy, is_idle, small, wait_until

from pippin.core.errors import (
    ContextLengthError,
    EngineStoppedError,
    InvalidRequestError,
    ModelLoadError,
    UnsupportedFeatureError,
)
from pippin.core.llm import LLM, Answer


@pytest.fixture(scope="module")
def llm(folder: str) -> Iterator[LLM]:
    with LLM(folder, small()) as made:
        yield made


def test_threads_share_it(llm: LLM) -> None:
    prompts = [[it, it + 1] for it in range(12)]
    alone = [llm.generate(it, greedy(15))[0].token_ids for it in prompts]

    def stream(prompt: list[int]) -> tuple[int, ...]:
        *_, last = llm.stream_generate(prompt, greedy(15))
        assert isinstance(last, Answer)
        return last.token_ids

    with ThreadPoolExecutor(12) as threads:
        streamed = threads.map(stream, prompts)
        whole = threads.map(lambda it: llm.generate(it, greedy(15))[0].token_ids, prompts)
        assert list(streamed) == list(whole) == alone
    assert llm.model_card.vocab_size > 256
    assert llm.count_tokens([1, 2]) == 2


def test_it_works_beside_a_running_loop(llm: LLM) -> None:
    async def notebook() -> int:
        [answer] = llm.chat("Hello", greedy(3))
        return len(answer.token_ids) + len(list(llm.stream_chat("Hello", greedy(3))))

    assert asyncio.run(notebook()) > 4


def test_errors_arrive_where_the_call_was(llm: LLM) -> None:
    for wrong in (lambda: llm.generate([1] * 5000), lambda: list(llm.stream_generate([1] * 5000))):
        with pytest.raises(ContextLengthError):
            wrong()
    # Those of what was asked come at once.
    with pytest.raises(InvalidRequestError):
        llm.stream_chat([{"role": "poet", "content": "Ode"}])
    with pytest.raises(UnsupportedFeatureError):
        llm.embed("Hello")
    assert is_idle(llm.stats())


def test_a_stream_that_is_dropped_is_aborted(llm: LLM) -> None:
    for _ in islice(llm.stream_generate("The sea", LONG), 3):
        pass
    wait_until(lambda: is_idle(llm.stats()))

    stream = llm.stream_chat("Hello", LONG)
    next(stream)
    stream.close()
    wait_until(lambda: is_idle(llm.stats()))
    with pytest.raises(StopIteration):
        next(stream)


def test_an_interrupt_ends_the_call_and_leaves_the_model_usable(llm: LLM) -> None:
    def interrupt() -> None:
        wait_until(lambda: llm.stats().num_running > 0)
        signal.pthread_kill(main.ident or 0, signal.SIGINT)

    main = threading.main_thread()
    for call in (lambda: llm.generate("x", LONG), lambda: list(llm.stream_generate("x", LONG))):
        helper = threading.Thread(target=interrupt)
        helper.start()
        with pytest.raises(KeyboardInterrupt):
            call()
        helper.join()
        wait_until(lambda: is_idle(llm.stats()))
    assert len(llm.generate("The sea", greedy(4))[0].token_ids) == 4


def test_closing_from_elsewhere_ends_what_waits(folder: str) -> None:
    before = threading.active_count()
    llm = LLM(folder, small())
    stream = llm.stream_generate("The sea", LONG)
    next(stream)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(llm.generate, [[1], [2], [3]], LONG)
        wait_until(lambda: llm.stats().num_running == 4)
        llm.close()
        with pytest.raises(EngineStoppedError):
            waiting.result(TIMEOUT_S)
    with pytest.raises(EngineStoppedError):
        list(stream)
    llm.close()
    with pytest.raises(EngineStoppedError):
        llm.generate("x")
    with pytest.raises(EngineStoppedError):
        list(llm.stream_chat("x"))
    wait_until(lambda: threading.active_count() == before)


def test_what_cannot_be_loaded_raises_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError):
        LLM(str(tmp_path / "nothing"))


def test_a_script_need_not_close_it(folder: str) -> None:
    script = (
        "import sys\nfrom pippin.core.llm import LLM\nllm = LLM(sys.argv[1])\n"
        "print(len(llm.generate('x', {'max_tokens': 3, 'ignore_eos': True})[0].token_ids))\n"
        "next(llm.stream_generate('x', {'ignore_eos': True}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, folder],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
