"""A conversation that grows by answers and tool results computes only what is new."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from engine_driver import EngineDriver, build, greedy, make_request
from reference import compare, reference_tokens
from tiny_models import make_tiny_model

_START, _END = 269, 268  # special tokens of the byte tokenizer
_NUM_TURNS = 30
# Half a block is lost per turn, whatever the layers keep: with 32 tokens it is a little too much.
_BLOCK_SIZE = 16
_CHECKED = (1, 14)
_QUICK = (("llama-tied", False), ("lfm2", False), ("lfm2", True))
_SLOW = (
    ("llama-tied", True),
    *(
        (name, strips)
        for name in ("gemma3", "qwen3-next", "kimi-linear")
        for strips in (False, True)
    ),
)


class Conversation:
    """What an agent sends, turn by turn.

    Args:
        strips: Whether the template drops the first half of an earlier answer, as some do with
            reasoning.
    """

    def __init__(self, *, strips: bool) -> None:
        self._rng = np.random.default_rng(7)
        self._strips = strips
        self._history = self._message(600)

    def next_prompt(self) -> list[int]:
        """Everything up to where the answer starts."""
        self._history += self._message(int(self._rng.integers(150, 450)))
        return [*self._history, _START, 65, 10]

    def take(self, answer: Sequence[int]) -> None:
        """An answer comes."""
        kept = list(answer)[len(answer) // 2 if self._strips else 0 :]
        self._history += [_START, 65, 10, *kept, _END, 10]

    def _message(self, length: int) -> list[int]:
        return [_START, 66, 10, *self._rng.integers(0, 256, size=length).tolist(), _END, 10]


def _num_new(prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> int:
    """Tokens behind all that the prompt has in common with what has been computed."""
    common = 0
    for text in texts:
        same = np.equal(prompt[: len(text)], text[: len(prompt)])
        common = max(common, len(same) if same.all() else int(same.argmin()))
    return len(prompt) - common


@pytest.mark.parametrize(
    ("name", "strips"),
    [*_QUICK, *(pytest.param(*case, marks=pytest.mark.exactness) for case in _SLOW)],
)
def test_a_turn_prefills_what_is_new(name: str, strips: bool) -> None:
    loaded = dataclasses.replace(make_tiny_model(name), max_model_len=16_384)
    driver = EngineDriver(build(loaded, block_size=_BLOCK_SIZE, num_tokens=16_384).engine)
    conversation = Conversation(strips=strips)
    prompts, answers = list[list[int]](), list[list[int]]()
    num_new = 0
    for turn in range(_NUM_TURNS):
        prompt = conversation.next_prompt()
        driver.run([make_request(f"t{turn}", prompt, greedy(12 + 5 * (turn % 9)))])
        answer = driver.answers[f"t{turn}", 0]
        # The last token of an answer is drawn, but nothing is computed of it.
        texts = [[*p, *a[:-1]] for p, a in zip(prompts, answers, strict=True)]
        num_new += _num_new(prompt, texts)
        conversation.take(answer.token_ids)
        prompts.append(prompt)
        answers.append(answer.token_ids)

    assert len(prompts[-1]) > 9_000
    # The last token of a prompt draws, and is not among those that ran in chunks.
    computed = driver.num_prefill_tokens + _NUM_TURNS
    assert computed <= 1.05 * num_new
    chosen = [prompts[i] for i in _CHECKED]
    wanted = [
        reference_tokens(loaded.model, prompts[i], num_tokens=len(answers[i])) for i in _CHECKED
    ]
    got = [answers[i] for i in _CHECKED]
    compare(loaded.model, chosen, wanted, got, label=name).check()


@pytest.mark.parametrize("name", ["llama-tied", "lfm2", "falcon-h1", "mamba2"])
@pytest.mark.parametrize("num_requests", [1, 3])
def test_equal_prompts_in_flight_are_prefilled_once(name: str, num_requests: int) -> None:
    loaded = make_tiny_model(name)
    built = build(loaded, block_size=_BLOCK_SIZE, prefill_chunk=64, mixed_prefill_chunk=64)
    driver = EngineDriver(built.engine)
    prompt = np.random.default_rng(1).integers(0, 256, size=500).tolist()
    driver.run(
        make_request(f"r{i}", prompt, greedy(20), n=4 // num_requests) for i in range(num_requests)
    )

    num_answers = len(driver.answers)
    assert num_answers >= 3
    assert driver.most_running == num_answers
    # Each has the end of the prompt, which is no whole block, to itself.
    whole = (len(prompt) - 1) // _BLOCK_SIZE * _BLOCK_SIZE
    assert driver.num_prefill_tokens == whole + num_answers * (len(prompt) - 1 - whole)
    wanted = reference_tokens(loaded.model, prompt, num_tokens=20)
    assert all(answer.token_ids == wanted for answer in driver.answers.values())
