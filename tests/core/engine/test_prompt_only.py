"""Requests that draw nothing: all that they leave behind is what they wrote."""

from __future__ import annotations

import numpy as np
import pytest
from engine_driver import EngineDriver, build, make_request
from tiny_models import VOCAB_SIZE, make_tiny_model

from pippin.core.backend import mx
from pippin.core.sampling_params import SamplingParams

PROMPT_LENGTH = 256


@pytest.mark.parametrize("num_prompt_logprobs", [None, 0])
def test_prompts_that_draw_nothing_leave_no_work_behind(num_prompt_logprobs: int | None) -> None:
    driver = EngineDriver(build(make_tiny_model("llama-tied"), num_tokens=2048).engine)
    params = SamplingParams(max_tokens=0, num_prompt_logprobs=num_prompt_logprobs)
    rng = np.random.default_rng(0)
    active_bytes = []
    for index in range(12):
        # Too long to run as rows, and new each time: nothing reads what the one before wrote.
        prompt = rng.integers(0, VOCAB_SIZE, PROMPT_LENGTH).tolist()
        driver.run([make_request(f"r{index}", prompt, params)])
        mx.synchronize()
        active_bytes.append(mx.get_active_memory())

    # A write that is put off holds its keys and values, and those of one layer alone are:
    put_off = PROMPT_LENGTH * 2 * 2 * 16 * 4  # tokens, two KV heads of keys and values, float32
    assert active_bytes[-1] - active_bytes[3] < put_off
    assert driver.num_prefill_tokens == 12 * (PROMPT_LENGTH - 1)
