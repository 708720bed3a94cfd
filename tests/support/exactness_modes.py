"""The ways in which an answer must not depend on how it was computed."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

import numpy as np
from engine_driver import AlwaysOn, Answer, EngineDriver, build, greedy, make_request
from tiny_models import make_tiny_model

from pippin.core.backend import mx
from pippin.core.engine.draft_source import HostSource
from pippin.core.engine.factory import BuiltEngine
from pippin.core.models.loader import LoadedModel, load_folder
from pippin.core.models.progress import NullProgress

Prompt = Sequence[int]
_MAX_NUM_SEQS = 16
# Small enough for a sliding group's few blocks, and for chunks to end inside of prompts.
_TIGHT_CHUNK = 128


class Mode(enum.Enum):
    """How the prompts run."""

    ALONE = "alone"
    TOGETHER = "16 at once, staggered"
    PREEMPTED = "preempted"
    WARM = "warm prefix cache"
    SPECULATED = "drafts, right and wrong"
    SPECULATED_TIGHT = "drafts, right and wrong, preempted"
    DRAFTED = "drafts of a similar model, preempted"
    CHUNKS_16 = "prefill chunks of 16"
    CHUNKS_64 = "prefill chunks of 64"
    CHUNKS_2048 = "prefill chunks of 2048"


_CHUNKS = {Mode.CHUNKS_16: 16, Mode.CHUNKS_64: 64, Mode.CHUNKS_2048: 2048}


def answer_in_mode(
    loaded: LoadedModel, mode: Mode, prompts: Sequence[Prompt], *, num_tokens: int, block_size: int
) -> list[list[int]]:
    """Greedy answers; fails unless what the mode is named after really happened."""
    match mode:
        case Mode.ALONE:
            return _alone(loaded, prompts, num_tokens, block_size)
        case Mode.PREEMPTED:
            return _preempted(loaded, prompts, num_tokens, block_size)
        case Mode.DRAFTED:
            return _preempted(loaded, prompts, num_tokens, block_size, draft=similar(loaded))
        case Mode.WARM:
            return _warm(loaded, prompts, num_tokens, block_size)
        case Mode.SPECULATED | Mode.SPECULATED_TIGHT:
            return _speculated(loaded, mode, prompts, num_tokens, block_size)
        case _:
            return _staggered(loaded, mode, prompts, num_tokens, block_size)


def random_prompts(
    rng: np.random.Generator, draw: Callable[[int], Prompt], *, count: int, longest: int
) -> list[Prompt]:
    """Prompts of 1 to ``longest`` tokens, many short and few long; every fourth shares a head.

    Args:
        draw: Makes a prompt of a given length.
    """
    corners = [1, 2, 16, 32, 33, longest]
    spread = np.exp(rng.uniform(0, np.log(longest), size=count)).astype(int)
    lengths = [*corners, *(int(n) for n in spread)][:count]
    head = list(draw(min(100, longest // 2)))
    prompts: list[Prompt] = []
    for index, length in enumerate(lengths):
        prompt = list(draw(length))
        if index % 4 == 3 and length < longest:
            prompt = [*head, *prompt][:longest]
        prompts.append(prompt)
    order = rng.permutation(count)
    return [prompts[i] for i in order]


def _roomy(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    num_tokens: int,
    block_size: int,
    *,
    chunk: int = 2048,
    verifies: bool = False,
) -> BuiltEngine:
    """An engine in which the 16 longest fit side by side."""
    longest = sorted((len(prompt) for prompt in prompts), reverse=True)[:_MAX_NUM_SEQS]
    return build(
        loaded,
        block_size=block_size,
        num_tokens=sum(longest) + _MAX_NUM_SEQS * (num_tokens + 2 * block_size) + chunk,
        max_num_seqs=_MAX_NUM_SEQS,
        prefill_chunk=chunk,
        verifies=verifies,
    )


def _run(
    driver: EngineDriver, prompts: Sequence[Prompt], num_tokens: int, tag: str
) -> list[Answer]:
    requests = [
        make_request(f"{tag}{index}", prompt, greedy(num_tokens))
        for index, prompt in enumerate(prompts)
    ]
    driver.run_staggered(requests)
    return [driver.answers[request.request_id, 0] for request in requests]


def _ids(answers: Sequence[Answer]) -> list[list[int]]:
    return [answer.token_ids for answer in answers]


def _alone(
    loaded: LoadedModel, prompts: Sequence[Prompt], num_tokens: int, block_size: int
) -> list[list[int]]:
    driver = EngineDriver(_roomy(loaded, prompts, num_tokens, block_size).engine)
    answers = []
    for index, prompt in enumerate(prompts):
        # A clean cache too: nothing that another prompt left behind.
        driver.engine.scheduler.cache.clear_index()
        driver.run([make_request(f"a{index}", prompt, greedy(num_tokens))])
        answers.append(driver.answers[f"a{index}", 0])
    assert driver.most_running == 1
    assert not any(answer.num_cached_tokens for answer in answers)
    return _ids(answers)


def _staggered(
    loaded: LoadedModel, mode: Mode, prompts: Sequence[Prompt], num_tokens: int, block_size: int
) -> list[list[int]]:
    built = _roomy(loaded, prompts, num_tokens, block_size, chunk=_CHUNKS.get(mode, 2048))
    driver = EngineDriver(built.engine)
    answers = _run(driver, prompts, num_tokens, "s")
    if built.paging_problem is None:
        assert driver.most_running > min(len(prompts), _MAX_NUM_SEQS) // 2
    return _ids(answers)


class _Prophet:
    """Guesses from earlier answers, and errs now and then."""

    def __init__(self, texts: Sequence[Sequence[int]], rng: np.random.Generator) -> None:
        self._texts = texts
        self._rng = rng

    def propose(self, token_ids: Sequence[int], max_tokens: int) -> list[int]:
        """See `Proposer`."""
        start = len(token_ids)
        known = list(token_ids)
        for text in self._texts:
            if list(text[:start]) == known:
                guess = list(text[start : start + max_tokens])
                for place in range(len(guess)):
                    if self._rng.random() < 0.15:
                        guess[place] = (guess[place] + 1) % 100
                return guess
        return []


def _speculated(
    loaded: LoadedModel, mode: Mode, prompts: Sequence[Prompt], num_tokens: int, block_size: int
) -> list[list[int]]:
    plain = EngineDriver(_roomy(loaded, prompts, num_tokens, block_size).engine)
    answers = _ids(_run(plain, prompts, num_tokens, "plain"))
    make = _tight if mode is Mode.SPECULATED_TIGHT else _roomy
    built = make(loaded, prompts, num_tokens, block_size, verifies=True)
    texts = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    rng = np.random.default_rng(0)
    speculator = AlwaysOn(HostSource("prophet", lambda: _Prophet(texts, rng)), max_tokens=5)
    driver = EngineDriver(built.engine)
    if built.paging_problem is None:
        driver.engine._speculator = speculator
    speculated = _ids(_run(driver, prompts, num_tokens, "s"))
    if built.paging_problem is None:
        counts = speculator.counts
        assert 0 < counts.num_accepted < counts.num_drafted
        # The prophet falls silent where an answer parts from the one that it knows.
        is_known = speculated == answers
        assert driver.num_steps < plain.num_steps or make is _tight or not is_known
        assert driver.num_preempted > 0 or make is _roomy
    return speculated


def similar(loaded: LoadedModel) -> LoadedModel:
    """A model that mostly agrees. It is built anew: engines adapt models to themselves."""
    name = loaded.model_id.removeprefix("tiny/")
    if name == loaded.model_id:
        fresh = load_folder(loaded.path, model_id=name, progress=NullProgress())
    else:
        fresh = make_tiny_model(name)
    rng = np.random.default_rng(0)
    for module in fresh.model.modules():
        for name, weight in module.items():
            if isinstance(weight, mx.array) and mx.issubdtype(weight.dtype, mx.floating):
                noise = rng.normal(1, 0.02, weight.shape).astype(np.float32)
                module[name] = weight * mx.array(noise)
    return fresh


def _tight(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    num_tokens: int,
    block_size: int,
    *,
    draft: LoadedModel | None = None,
    verifies: bool = False,
) -> BuiltEngine:
    """An engine with too little room for all."""
    longest = max(len(prompt) for prompt in prompts) + num_tokens + 1
    return build(
        loaded,
        block_size=min(block_size, 8),  # so that short answers need further blocks, too
        num_tokens=max(longest, 8 * num_tokens) + 2 * block_size,
        max_num_seqs=_MAX_NUM_SEQS,
        prefill_chunk=min(_TIGHT_CHUNK, longest // 2),
        draft=draft,
        least_states=0,
        verifies=verifies,
    )


def _preempted(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    num_tokens: int,
    block_size: int,
    *,
    draft: LoadedModel | None = None,
) -> list[list[int]]:
    built = _tight(loaded, prompts, num_tokens, block_size, draft=draft)
    driver = EngineDriver(built.engine)
    answers = _run(driver, prompts, num_tokens, "p")
    if built.paging_problem is None:
        assert driver.num_preempted > 0, "the cache was large enough for everybody"
    if draft is not None:
        assert driver.engine._speculator is not None
        counts = driver.engine._speculator.counts
        assert 0 < counts.num_accepted < counts.num_drafted
    return _ids(answers)


def _warm(
    loaded: LoadedModel, prompts: Sequence[Prompt], num_tokens: int, block_size: int
) -> list[list[int]]:
    built = build(
        loaded,
        block_size=block_size,
        num_tokens=sum(map(len, prompts)) + len(prompts) * (num_tokens + 2 * block_size) + 2048,
        max_num_seqs=_MAX_NUM_SEQS,
    )
    driver = EngineDriver(built.engine)
    _run(driver, prompts, num_tokens, "cold")
    num_cold = driver.num_prefill_tokens
    answers = _run(driver, prompts, num_tokens, "warm")
    if built.paging_problem is None:
        for prompt, answer in zip(prompts, answers, strict=True):
            # All full blocks but the one that holds the last token.
            whole = (len(prompt) - 1) // block_size * block_size
            assert answer.num_cached_tokens == whole, f"prompt of {len(prompt)} tokens"
        computed = sum(
            len(p) - 1 - a.num_cached_tokens for p, a in zip(prompts, answers, strict=True)
        )
        assert driver.num_prefill_tokens - num_cold == computed
    return _ids(answers)
