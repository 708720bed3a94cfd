"""SmolLM2-135M, a real model in float32, answers as mlx-lm does alone, however it is run."""

from __future__ import annotations

from collections.abc import Sequence
from pydoc_data.topics import topics

import numpy as np
import pytest
from exactness_modes import Mode, answer_in_mode, random_prompts
from reference import Tally, compare, reference_tokens

from pippin.core.errors import DownloadError
from pippin.core.models.loader import LoadedModel, load_model
from pippin.core.models.progress import NullProgress

_BLOCK_SIZE = 32
_QUICK_MODES = (Mode.PREEMPTED, Mode.WARM, Mode.SPECULATED, Mode.CHUNKS_16)


class Subject:
    """The model, prompts of English prose, and mlx-lm's answers to them, worked out once."""

    def __init__(self, loaded: LoadedModel, *, count: int, longest: int, num_tokens: int) -> None:
        self.loaded = loaded
        self.num_tokens = num_tokens
        text = "\n".join(topics[name] for name in sorted(topics))[:200_000]
        ids: list[int] = loaded.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        rng = np.random.default_rng(count)

        def draw(length: int) -> Sequence[int]:
            start = int(rng.integers(0, len(ids) - length))
            return ids[start : start + length]

        self.prompts = random_prompts(rng, draw, count=count, longest=longest)
        self.wanted = [
            reference_tokens(loaded.model, prompt, num_tokens=num_tokens) for prompt in self.prompts
        ]

    def check(self, mode: Mode, tally: Tally) -> None:
        """Run all prompts that way and compare."""
        got = answer_in_mode(
            self.loaded,
            mode,
            self.prompts,
            num_tokens=self.num_tokens,
            block_size=_BLOCK_SIZE,
        )
        label = f"SmolLM2, {mode.value}"
        result = compare(self.loaded.model, self.prompts, self.wanted, got, label=label)
        tally.add(result)
        result.check()


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    try:
        return load_model("demo", progress=NullProgress())
    except DownloadError as error:
        pytest.skip(f"the demo model cannot be fetched here: {error}")


@pytest.fixture(scope="module")
def few(demo: LoadedModel) -> Subject:
    return Subject(demo, count=10, longest=200, num_tokens=12)


@pytest.fixture(scope="module")
def many(demo: LoadedModel) -> Subject:
    return Subject(demo, count=64, longest=1500, num_tokens=64)


@pytest.mark.parametrize("mode", _QUICK_MODES, ids=lambda mode: mode.name)
def test_answers_are_those_of_mlx_lm(mode: Mode, few: Subject, session_tally: Tally) -> None:
    few.check(mode, session_tally)


@pytest.mark.exactness
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.name)
def test_64_answers_are_those_of_mlx_lm(mode: Mode, many: Subject, session_tally: Tally) -> None:
    many.check(mode, session_tally)
