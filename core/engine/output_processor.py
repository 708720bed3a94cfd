"""Drawn token ids to what one answer shows: text, stop strings, log probabilities.

One `OutputProcessor` follows one answer. Whether a token ends the answer is the scheduler's to say;
whether its text does is decided here. Runs on the engine thread, once per answer and step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence, Set

from ..parsing.output_parser import OutputParser, Piece, PlainParser
from ..parsing.reply_parser import ReplyParser
from ..request import FinishReason, PositionLogprobs, RawLogprobs, RequestOutput, TokenLogprob
from ..sampling_params import SamplingParams
from ..text.stop_strings import StopStringScanner
from ..text.token_spans import TokenSpan, TokenSpanTracker
from ..text.tokenizer import Tokenizer


class OutputProcessor:
    """Makes the `RequestOutput` of every step of one answer.

    Args:
        shown_ids: Special tokens that the text shows, for whoever reads it on.
        make_parser: What the caller reads the text with. Stop strings end what that takes for
            content; in reasoning, markers and calls they mean nothing.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        *,
        request_id: str,
        index: int,
        shown_ids: Set[int] = frozenset(),
        make_parser: Callable[[], OutputParser] = PlainParser,
    ) -> None:
        self._tokenizer = tokenizer
        self._params = params
        self._request_id = request_id
        self._index = index
        self._detokenizer = tokenizer.make_detokenizer(shown_ids=shown_ids)
        self._scanner = StopStringScanner(params.stop) if params.stop else None
        parser = make_parser() if params.stop else None
        self._parser = parser if isinstance(parser, ReplyParser) else None
        self._logprobs = (
            None if params.num_logprobs is None else _LogprobsQueue(tokenizer, shown_ids)
        )
        self._num_output_tokens = 0
        self._num_characters = 0
        self._is_finished = False

    @property
    def is_finished(self) -> bool:
        """Whether the answer's last output was made; no tokens may follow."""
        return self._is_finished

    def process(
        self,
        token_ids: Sequence[int],
        *,
        logprobs: Sequence[RawLogprobs] | None = None,
        finish_reason: FinishReason | None = None,
        num_cached_tokens: int = 0,
    ) -> RequestOutput:
        """Take the tokens that a step drew.

        Args:
            token_ids: In order, with the token that ended the answer, if one did.
            logprobs: One entry a token; needed if the request asks for them.
            finish_reason: Why these are the last tokens, if they are.
            num_cached_tokens: Passed on.

        Returns:
            The answer's next output. If it has a ``finish_reason`` though none was given, a stop
            string has ended the answer, the tokens behind it are not counted, and the caller must
            end the sequence.
        """
        assert not self._is_finished, "tokens for an answer that has ended"
        is_stop = finish_reason is FinishReason.STOP and self._ends_with_stop_token(token_ids)
        ended_by = token_ids[-1] if is_stop else None
        # What a stop token spells is no part of the answer.
        num_shown = len(token_ids) if ended_by is None else len(token_ids) - 1
        deltas: list[str] = []
        text_offsets: list[int] = []
        matched: str | None = None
        num_taken = 0
        while num_taken < num_shown and matched is None:
            token_id = token_ids[num_taken]
            text = self._detokenizer.feed(token_id)
            text_offsets.append(self._num_characters)
            self._num_characters += len(text)
            if self._logprobs is not None and logprobs is not None:
                self._logprobs.add(logprobs[num_taken], text)
            num_taken += 1
            self._num_output_tokens += 1
            if self._scanner is None:
                deltas.append(text)
            elif text:
                matched = self._scan(self._scanner, text, deltas)
        if finish_reason is not None and matched is None:
            matched = self._close(deltas)
        stop_reason: str | int | None = matched
        if matched is not None:
            finish_reason = FinishReason.STOP
        elif ended_by is not None:
            num_taken += 1
            self._num_output_tokens += 1
            text_offsets.append(self._num_characters)
            stop_reason = self._stop_reason(ended_by)
        self._is_finished = finish_reason is not None
        delta = "".join(deltas)
        return RequestOutput(
            request_id=self._request_id,
            index=self._index,
            text=delta,
            token_ids=tuple(token_ids[:num_taken]),
            text_offsets=tuple(text_offsets),
            num_output_tokens=self._num_output_tokens,
            num_cached_tokens=num_cached_tokens,
            logprobs=self._release_logprobs(len(delta), matched, finish_reason),
            finish_reason=finish_reason,
            stop_reason=stop_reason,
        )

    def _scan(self, scanner: StopStringScanner, text: str, deltas: list[str]) -> str | None:
        if self._parser is None:
            return self._scan_pieces(scanner, [Piece(text, is_content=True)], deltas)
        self._parser.feed(text)
        return self._scan_pieces(scanner, self._parser.pieces, deltas)

    def _scan_pieces(
        self, scanner: StopStringScanner, pieces: Sequence[Piece], deltas: list[str]
    ) -> str | None:
        armed = self._num_output_tokens > self._params.min_tokens
        for text, is_content, _ in pieces:
            if not is_content:
                deltas += (scanner.close(), text)
                continue
            scan = scanner.feed(text, armed=armed)
            deltas.append(scan.text)
            if scan.matched_stop is not None:
                return scan.matched_stop
        return None

    def _close(self, deltas: list[str]) -> str | None:
        """Release what is held, unless it completes a stop string."""
        text = self._detokenizer.close()
        self._num_characters += len(text)
        if self._logprobs is not None:
            self._logprobs.close(text)
        if self._scanner is None:
            deltas.append(text)
            return None
        matched = self._scan(self._scanner, text, deltas)
        if matched is None and self._parser is not None:
            self._parser.close()
            matched = self._scan_pieces(self._scanner, self._parser.pieces, deltas)
        if matched is None:
            deltas.append(self._scanner.close())
        return matched

    def _ends_with_stop_token(self, token_ids: Sequence[int]) -> bool:
        return len(token_ids) > 0 and (
            token_ids[-1] in self._tokenizer.eos_token_ids
            or token_ids[-1] in self._params.stop_token_ids
        )

    def _stop_reason(self, token_id: int) -> int | None:
        # The model's own end is the normal one: only a stop that the caller named is worth saying.
        if token_id not in self._params.stop_token_ids:
            return None
        is_eos = token_id in self._tokenizer.eos_token_ids and not self._params.ignore_eos
        return None if is_eos else token_id

    def _release_logprobs(
        self, num_characters: int, matched: str | None, finish_reason: FinishReason | None
    ) -> tuple[PositionLogprobs, ...]:
        if self._logprobs is None:
            return ()
        if matched is not None:
            return self._logprobs.release_before_cut(num_characters)
        if finish_reason is not None:
            return self._logprobs.release_all()
        return self._logprobs.release(num_characters)


class _LogprobsQueue:
    """Log probabilities of tokens whose text is not out yet.

    A token's entry leaves with the last of its text. One without text of its own waits until the
    character behind it is out: only then is it certain that no stop string cuts the text before it.
    """

    def __init__(self, tokenizer: Tokenizer, shown_ids: Set[int]) -> None:
        self._tokenizer = tokenizer
        self._tracker = TokenSpanTracker(tokenizer, shown_ids)
        self._unplaced: deque[RawLogprobs] = deque()
        self._placed: deque[tuple[TokenSpan, RawLogprobs]] = deque()
        self._num_released = 0

    def add(self, raw: RawLogprobs, text: str) -> None:
        """Take a token's entry and the delta that the detokenizer made of the token."""
        self._unplaced.append(raw)
        self._place(self._tracker.add(raw.token_id, text))

    def close(self, text: str) -> None:
        """Take the delta that closing the detokenizer released."""
        self._place(self._tracker.close(text))

    def release(self, num_characters: int) -> tuple[PositionLogprobs, ...]:
        """Entries of tokens that the next `num_characters` of the answer complete."""
        self._num_released += num_characters
        entries = []
        while self._placed:
            span, raw = self._placed[0]
            if max(span.stop, span.start + 1) > self._num_released:
                break
            self._placed.popleft()
            entries.append(_to_position(self._tokenizer, raw, span))
        return tuple(entries)

    def release_before_cut(self, num_characters: int) -> tuple[PositionLogprobs, ...]:
        """Entries of tokens that begin in the answer, which ends after `num_characters` more."""
        self._num_released += num_characters
        return tuple(
            _to_position(self._tokenizer, raw, span)
            for span, raw in self._placed
            if span.start < self._num_released
        )

    def release_all(self) -> tuple[PositionLogprobs, ...]:
        """All entries: the answer has ended behind them."""
        return tuple(_to_position(self._tokenizer, raw, span) for span, raw in self._placed)

    def _place(self, spans: Sequence[TokenSpan]) -> None:
        for span in spans:
            self._placed.append((span, self._unplaced.popleft()))


def prompt_logprobs(
    tokenizer: Tokenizer, token_ids: Sequence[int], raw: Sequence[RawLogprobs | None]
) -> list[PositionLogprobs | None]:
    """Log probabilities of a prompt, one entry a token; offsets leave special tokens out.

    `raw` is as long as `token_ids`, with ``None`` where nothing is known, as for the first token.
    """
    tracker = TokenSpanTracker(tokenizer)
    detokenizer = tokenizer.make_detokenizer()
    spans: list[TokenSpan] = []
    for token_id in token_ids:
        spans.extend(tracker.add(token_id, detokenizer.feed(token_id)))
    spans.extend(tracker.close(detokenizer.close()))
    return [
        None if entry is None else _to_position(tokenizer, entry, span)
        for entry, span in zip(raw, spans, strict=True)
    ]


def _to_position(tokenizer: Tokenizer, raw: RawLogprobs, span: TokenSpan) -> PositionLogprobs:
    return PositionLogprobs(
        chosen=_to_candidate(tokenizer, raw.token_id, raw.logprob),
        top=tuple(_to_candidate(tokenizer, token_id, logprob) for token_id, logprob in raw.top),
        text_offset=span.start,
        text_end=span.stop,
    )


def _to_candidate(tokenizer: Tokenizer, token_id: int, logprob: float) -> TokenLogprob:
    return TokenLogprob(
        token_id=token_id,
        text=tokenizer.token_text(token_id),
        raw=tokenizer.token_bytes(token_id),
        logprob=logprob,
    )
