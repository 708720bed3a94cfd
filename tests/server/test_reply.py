from __future__ import annotations

from pippin.core.request import RequestOutput
from pippin.server.adapters.reply import UsageCounter


def _output(index: int, *, num_output_tokens: int, num_cached_tokens: int) -> RequestOutput:
    return RequestOutput(
        request_id="r",
        index=index,
        text="",
        token_ids=(),
        num_output_tokens=num_output_tokens,
        num_cached_tokens=num_cached_tokens,
    )


def test_usage_counts_prompts_once_and_answers_all() -> None:
    usage = UsageCounter(10)
    usage.note(0, _output(0, num_output_tokens=1, num_cached_tokens=2))
    usage.note(0, _output(0, num_output_tokens=3, num_cached_tokens=2))
    # The second answer found what the first one left: that was not there before the call.
    usage.note(0, _output(1, num_output_tokens=4, num_cached_tokens=6))
    usage.note(1, _output(0, num_output_tokens=5, num_cached_tokens=1))

    assert usage.to_wire() == {
        "prompt_tokens": 10,
        "completion_tokens": 12,
        "total_tokens": 22,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
