"""Compiles an answer's rules, in the worker threads where prompts are made."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TypeVar

from llguidance import LLMatcher, LLParserLimits

from ..errors import InvalidRequestError
from ..messages import ToolSpec
from ..reply_rules import ReplyRules
from ..text.tokenizer import Tokenizer
from .constraint import Constraint, ConstraintFactory
from .grammar import GrammarWriter, needs_grammar, wire_name
from .matcher import GrammarMatcher
from .reply_constraint import ReplyConstraint
from .thinking import Thinking, ThinkingMarkers
from .tool_grammar import ToolGrammar
from .vocabulary import Vocabulary

# A hostile grammar is to cost its caller: 20 ms of compiling, 10 ms and 2,000 steps of the parser a
# token, some 200 MB of lexer states.
_LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=100_000,
    step_max_items=50_000,
    max_lexer_states=250_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
_MOST_BYTES = 128 * 1024
# llguidance follows rules and references by recursion and has no limit there: the text's length is
# one, and this many bytes a character of it are several times what was ever seen to be needed.
_STACK_BYTES = 4096 * _MOST_BYTES
_MOST_CACHED = 64
_LONGEST_REASON = 200

_T = TypeVar("_T")


class ConstraintCompiler:
    """Makes constraints for one model. Any thread may call it.

    Args:
        vocab_size: Ids the model has logits for.
        thinking: How the model marks its reasoning, if it reasons.
        calls: How it writes tool calls, if that is known.
        content_begin: What it writes before it says anything, reasoned or not.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        *,
        thinking: ThinkingMarkers | None = None,
        calls: ToolGrammar | None = None,
        content_begin: str = "",
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._thinking = thinking
        self._calls = calls
        self._content_begin = content_begin
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, GrammarMatcher] = OrderedDict()

    def compile(
        self, rules: ReplyRules, tools: Sequence[ToolSpec] = (), *, prompt: str | None = None
    ) -> ConstraintFactory | None:
        """What makes a fresh constraint for each answer; ``None`` if nothing is to be enforced.

        Args:
            prompt: The end of what the answer follows: it tells whether reasoning has begun or is
                over. ``None`` where the answer is to hold none.

        Raises:
            InvalidRequestError: A rule is none that can be followed; says which and why.
        """
        markers, budget = self._thinking, rules.thinking_budget
        if prompt is None:
            markers = None
        matcher = None
        if needs_grammar(rules, tools):
            matcher = self._matcher(rules, tools)
            if markers is not None and markers.is_closed(prompt or ""):
                markers = None  # and the grammar lets no other reasoning through
        elif markers is None or budget is None:
            return None  # a model that does not reason keeps to any budget
        vocabulary = self._vocabulary
        is_open = markers is not None and markers.is_open(prompt or "")
        make_reader = None
        if markers is not None and markers.make_reader is not None and matcher is None:
            called = () if rules.tool_choice.mode == "none" else tools
            make_reader = partial(markers.make_reader, called, is_open)

        def make() -> Constraint:
            thinking = None
            if markers is not None:
                thinking = Thinking(
                    markers,
                    vocabulary.encode,
                    is_open=is_open,
                    make_reader=make_reader,
                    budget=budget,
                )
            return ReplyConstraint(vocabulary, thinking, matcher and matcher.copy())

        return make

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self._tokenizer, self._vocab_size)

    def _matcher(self, rules: ReplyRules, tools: Sequence[ToolSpec]) -> GrammarMatcher:
        vocabulary = self._vocabulary
        writer = GrammarWriter(
            vocabulary.marker_ids,
            frozenset(vocabulary.end_ids),
            self._accepts_schema,
            self._content_begin,
        )
        try:
            grammar = writer.write(rules, tools, self._calls)
            with self._lock:
                known = self._compiled.get(grammar)
                # All answers share the lexer's states: if one used them up, there is a new start.
                if known is not None and not known.is_exhausted:
                    self._compiled.move_to_end(grammar)
                    return known
            matcher = _with_deep_stack(lambda: self._compile(grammar))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if rules.response_format is not None:
                # Should the tools be to blame, this says so.
                self.compile(replace(rules, response_format=None), tools)
            name, reason = wire_name(rules), " ".join(str(error).split())[:_LONGEST_REASON]
            reason += " is missing" if isinstance(error, KeyError) else ""
            raise InvalidRequestError(f"{name} cannot be followed: {reason}", param=name) from error
        with self._lock:
            self._compiled[grammar] = matcher
            while len(self._compiled) > _MOST_CACHED:
                self._compiled.popitem(last=False)
        return matcher

    def _compile(self, grammar: str) -> GrammarMatcher:
        _check_size(grammar)
        matcher = LLMatcher(self._vocabulary.ll_tokenizer, grammar, log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first is the dearest, and all copies share it
        if matcher.is_error():
            reason = matcher.get_error()
            endless = "it leads back to itself, and nothing that ends can follow it"
            raise ValueError(endless if "NoExtensionBias" in reason else reason)
        return GrammarMatcher(matcher, self._vocabulary)

    def _accepts_schema(self, schema: str) -> bool:
        grammar = LLMatcher.grammar_from_json_schema(schema)
        _check_size(grammar)
        return not _with_deep_stack(lambda: LLMatcher.validate_grammar(grammar, limits=_LIMITS))


def _check_size(grammar: str) -> None:
    if len(grammar) > _MOST_BYTES:
        raise ValueError(f"as a grammar it has {len(grammar)} bytes; {_MOST_BYTES} is the most")


def _with_deep_stack(work: Callable[[], _T]) -> _T:
    """Do work on a thread of its own with room for deep recursion; memory is only reserved."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # a panic of llguidance's is no Exception
            errors.append(error)

    with _STACK_LOCK:
        usual = threading.stack_size(_STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="pippin-grammar")
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    if errors:
        raise ValueError(str(errors[0])) from errors[0]
    return results[0]


_STACK_LOCK = threading.Lock()
