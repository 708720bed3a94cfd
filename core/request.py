"""What runs, after tokenizing, and what comes back. Immutable on both ways."""

from __future__ import annotations

import enum
from collections.abc import Callable, Set
from dataclasses import dataclass, field

from .constraints.constraint import ConstraintFactory
from .errors import GenerationError, InvalidRequestError, PippinError
from .parsing.output_parser import OutputParser, PlainParser
from .sampling_params import SamplingParams


class FinishReason(enum.Enum):
    """Why an answer ended."""

    STOP = "stop"  # end-of-sequence token, stop token or stop string
    LENGTH = "length"  # max_tokens or the model's context length
    ABORT = "abort"  # the caller went away
    ERROR = "error"  # the engine failed on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call's ask, tokenized.

    Attributes:
        request_id: Unique among running requests.
        num_sequences: Answers wanted (``n`` on the wire).
        make_parser: Makes what reads one answer's text.
        shown_ids: Special tokens that the text shows, for the parser.
        constraint: Makes what holds one answer to its rules; ``None`` if there are none.
        cache_salt: Keeps the prefixes of callers with different salts apart.
        arrival_at: Monotonic seconds.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    num_sequences: int = 1
    make_parser: Callable[[], OutputParser] = PlainParser
    shown_ids: Set[int] = frozenset()
    constraint: ConstraintFactory | None = None
    cache_salt: str = ""
    arrival_at: float = 0.0

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return len(self.prompt_token_ids)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One candidate token and its log probability.

    Attributes:
        text: The token decoded alone; broken characters show as U+FFFD.
        raw: The token's bytes, so that a client can join characters over token borders.
    """

    token_id: int
    text: str
    raw: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """Log probabilities at one position.

    Attributes:
        chosen: The token that stands there. Its logprob is that of the model's own distribution,
            after penalties, bias and constraints, before temperature and truncation.
        top: The likeliest candidates, best first; as many as were asked for.
        text_offset: Characters of the answer (or prompt) before this token.
        text_end: Those before what follows it. A character that tokens share is the last one's.
    """

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]
    text_offset: int
    text_end: int


# Not frozen, as one is made for every row of every step, but nobody changes it.
@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """What one step added to one answer.

    Attributes:
        index: Which of the request's ``num_sequences`` answers.
        text: New text, safe to show: no stop string can still begin in it.
        token_ids: New tokens, stop tokens included.
        text_offsets: Of each of them: the answer's whole characters that the tokens before it made.
            Their text may come out later.
        logprobs: One entry for each token whose text is released with ``text``, if asked for.
        num_output_tokens: Tokens drawn for this answer so far.
        num_cached_tokens: Prompt tokens that were not computed but found in the prefix index.
        finish_reason: Set on the last output of an answer.
        stop_reason: The stop string or stop token id that ended it, if one did.
        error: Set with ``FinishReason.ERROR``: what went wrong, in one line.
        is_callers_fault: Whether that lies in what was asked.
    """

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    num_output_tokens: int
    num_cached_tokens: int
    text_offsets: tuple[int, ...] = ()
    logprobs: tuple[PositionLogprobs, ...] = field(default=())
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    is_callers_fault: bool = False

    @property
    def failure(self) -> PippinError | None:
        """What to raise instead of an answer, if this output ends one that failed."""
        if self.finish_reason is FinishReason.ERROR:
            if self.is_callers_fault:
                return InvalidRequestError(
                    f"A rule for the answer cannot be followed: {self.error}"
                )
            return GenerationError(self.error or "The engine failed on this request.")
        if self.finish_reason is FinishReason.ABORT:
            return GenerationError("The generation was aborted.")
        return None


@dataclass(frozen=True, slots=True)
class RawLogprobs:
    """What the sampler says about one drawn (or given) token, before it has text.

    Attributes:
        token_id: The token that stands there.
        logprob: Its log probability.
        top: Token id and log probability of the likeliest candidates, best first; as many as were
            asked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
