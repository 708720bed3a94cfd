"""The lengths of an answer in progress, derived from what is known."""

from typing import Any

from pippin.core.cache.block_hash import root_hash
from pippin.core.cache.kv_cache_manager import SequenceCache
from pippin.core.engine.sequence import Sequence, SequenceStatus
from pippin.core.request import Request
from pippin.core.sampling_params import SamplingParams


def make_sequence(prompt: int = 8, *, index: int = 0, **params: Any) -> Sequence:
    request = Request(
        request_id="r", prompt_token_ids=tuple(range(prompt)), params=SamplingParams(**params)
    )
    cache = SequenceCache(root=root_hash(), tables=())
    return Sequence(request, index, seed=7, cache=cache)


def test_a_new_sequence_has_all_of_its_prompt_to_run() -> None:
    sequence = make_sequence(prompt=8)
    assert sequence.status is SequenceStatus.WAITING
    assert not sequence.is_finished
    assert (sequence.num_prompt_tokens, sequence.num_output_tokens) == (8, 0)
    assert sequence.num_uncomputed_tokens == 8
    assert sequence.output_token_ids == []


def test_one_token_is_left_to_run_while_decoding() -> None:
    sequence = make_sequence(prompt=8)
    sequence.num_computed_tokens, sequence.num_pending = 8, 1
    assert (sequence.num_total_tokens, sequence.num_tokens) == (9, 8)
    assert sequence.num_uncomputed_tokens == 1
    sequence.token_ids.append(42)
    sequence.num_pending = 0
    assert (sequence.num_total_tokens, sequence.num_tokens) == (9, 9)
    assert sequence.num_uncomputed_tokens == 1
    assert sequence.output_token_ids == [42]


def test_the_prompt_of_the_request_is_not_written_to() -> None:
    one, other = make_sequence(prompt=3), make_sequence(prompt=3)
    one.token_ids.append(9)
    assert one.request.prompt_token_ids == (0, 1, 2)
    assert other.token_ids == [0, 1, 2]


def test_answers_of_one_request_have_keys_of_their_own() -> None:
    assert [make_sequence(index=index).key for index in range(2)] == [("r", 0), ("r", 1)]


def test_the_first_answer_works_out_the_prompts_logprobs_for_all() -> None:
    assert make_sequence(num_prompt_logprobs=0).wants_prompt_logprobs
    assert not make_sequence(num_prompt_logprobs=0, index=1).wants_prompt_logprobs
    assert not make_sequence().wants_prompt_logprobs


def test_a_sequence_shows_who_and_how_far_it_is() -> None:
    sequence = make_sequence(prompt=8)
    sequence.num_computed_tokens, sequence.num_pending = 8, 1
    assert repr(sequence) == "Sequence(r/0, waiting, 8/8+1)"
