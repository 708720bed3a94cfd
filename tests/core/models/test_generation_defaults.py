import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pippin.core.models.generation_defaults import (
    default_sampling,
    eos_ids,
    read_generation_config,
)
from pippin.core.sampling_params import SamplingParams


def test_advised_values_are_taken() -> None:
    advised = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0, "max_length": 4096}
    assert default_sampling(advised) == {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.0,
    }


def test_do_sample_false_means_greedy_whatever_else_stands_there() -> None:
    assert default_sampling({"do_sample": False, "temperature": 0.6}) == {"temperature": 0.0}


@pytest.mark.parametrize(
    "nonsense",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": True},
        {"temperature": "0.6"},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": 2.5},
        {"top_k": math.inf},
        {"top_k": -1},
        {"min_p": None},
        {"repetition_penalty": 0.0},
    ],
)
def test_nonsense_is_left_out(nonsense: dict[str, Any]) -> None:
    assert default_sampling(nonsense) == {}


json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([1])
keys = st.sampled_from(["temperature", "top_p", "top_k", "min_p", "repetition_penalty"])


@given(st.dictionaries(keys, json_values))
def test_whatever_stands_there_makes_valid_params(content: dict[str, Any]) -> None:
    values: dict[str, Any] = default_sampling(content)
    SamplingParams(**values)


def test_eos_ids_come_in_every_form() -> None:
    assert eos_ids(2, [5, 3], {7}, None, True, "x", [None]) == (2, 3, 5, 7)


@pytest.mark.parametrize("text", ["{broken", "[1]", '"text"'])
def test_a_broken_file_is_no_reason_not_to_serve(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    assert read_generation_config(tmp_path) == {}


def test_a_missing_file_gives_nothing(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}
