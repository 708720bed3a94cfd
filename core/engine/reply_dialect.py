"""What a model's answers look like: how they are read, and how they are held to rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, fields, is_dataclass

from ..constraints.thinking import ThinkingMarkers
from ..constraints.tool_grammar import ToolGrammar
from ..errors import ConfigError
from ..messages import ChatPrompt, Prompt, ToolSpec
from ..parsing.detect import (
    HARMONY,
    REASONING_PARSER_NAMES,
    TOOL_PARSER_NAMES,
    detect_reasoning_dialect,
    detect_tool_dialect,
    make_parser,
)
from ..parsing.dialects import REASONING_DIALECTS, TOOL_DIALECTS
from ..parsing.output_parser import OutputParser, PlainParser
from ..parsing.reply_parser import ReasoningDialect
from ..parsing.tool_grammars import TOOL_GRAMMARS
from ..reply_rules import ReplyRules
from ..text.tokenizer import Tokenizer

# What tools are spelled out in for a model that was never told of any: see `spelled_tools.py`.
_PLAIN_TOOLS = "hermes"
_OFF = "off"


@dataclass(frozen=True, slots=True)
class ReplyDialect:
    """The dialects of one model, by name.

    Attributes:
        tools: ``None`` where calls are not to be looked for.
        reasoning: ``None`` where the model does not reason, as far as is known.
    """

    tools: str | None = None
    reasoning: str | None = None

    @classmethod
    def of_model(
        cls,
        tokenizer: Tokenizer,
        model_type: str,
        *,
        tool_parser: str | None = None,
        reasoning_parser: str | None = None,
    ) -> ReplyDialect:
        """As the chat template tells them.

        Args:
            tool_parser: To be taken whatever the template says; ``off`` for none.
            reasoning_parser: The same.
        """
        template = tokenizer.chat_template_text
        tools = tool_parser or detect_tool_dialect(template, model_type) or _PLAIN_TOOLS
        reasoning = reasoning_parser or detect_reasoning_dialect(template, model_type)
        return cls(
            None if tools == _OFF else tools, None if reasoning in (None, _OFF) else reasoning
        )

    @property
    def thinking(self) -> ThinkingMarkers | None:
        """The markers around reasoning."""
        found = self._reasoning
        return ThinkingMarkers(found.opens[0], found.end, self._make_parser) if found else None

    @property
    def content_begin(self) -> str:
        """What must stand before content that a grammar describes."""
        begin = self._reasoning.content_begin if self._reasoning else ""
        return begin or (self.calls.plain if self.calls else "")

    @property
    def calls(self) -> ToolGrammar | None:
        """How calls are written, if they can be enforced."""
        return TOOL_GRAMMARS.get(self.tools or "")

    def parser_for(
        self, prompt: Prompt, prompt_text: str, rules: ReplyRules | None
    ) -> Callable[[], OutputParser]:
        """What makes a parser for each answer to a prompt.

        Args:
            prompt_text: The rendered prompt, or its end.
        """
        if rules is None or not isinstance(prompt, ChatPrompt):
            return PlainParser
        called = prompt.tools if rules.tool_choice.mode != "none" else ()
        is_open = self.starts_in_reasoning(prompt, prompt_text)
        return lambda: self._make_parser(called, is_open)

    def starts_in_reasoning(self, prompt: ChatPrompt, prompt_text: str) -> bool:
        """Whether answers to a prompt start as reasoning.

        Args:
            prompt_text: The end of the rendered prompt.
        """
        found = self._reasoning
        if found is None:
            return False
        # Markers elsewhere in the conversation are somebody's talk about markers.
        begun = prompt.messages[-1].text if prompt.continue_final_message else ""
        return found.starts_in_reasoning(prompt_text) or found.starts_in_reasoning(
            begun, continues=True
        )

    def shown_ids(self, tokenizer: Tokenizer) -> Set[int]:
        """Special tokens that the parser must see: those of which its markers are made."""
        if HARMONY in (self.tools, self.reasoning):
            return tokenizer.special_ids
        parts = [TOOL_DIALECTS.get(self.tools or ""), self._reasoning]
        markers = [text for part in parts for text in _texts_in(part)]
        names = {token_id: tokenizer.token_text(token_id) for token_id in tokenizer.special_ids}
        return frozenset(
            token_id
            for token_id, name in names.items()
            if name and any(name in marker for marker in markers)
        )

    def _make_parser(self, tools: Sequence[ToolSpec], is_open: bool) -> OutputParser:
        dialect = self.tools if tools else None
        if self.tools == HARMONY or self.content_begin:
            dialect = self.tools  # its headers are to be read, whatever is called
        return make_parser(dialect, self.reasoning, tools, starts_in_reasoning=is_open)

    @property
    def _reasoning(self) -> ReasoningDialect | None:
        return REASONING_DIALECTS.get(self.reasoning or "")


def check_parser_names(tool_parser: str | None, reasoning_parser: str | None) -> None:
    """See that dialects of these names are known.

    Raises:
        ConfigError: One is not.
    """
    for flag, name, known in (
        ("tool-call-parser", tool_parser, TOOL_PARSER_NAMES),
        ("reasoning-parser", reasoning_parser, REASONING_PARSER_NAMES),
    ):
        if name not in (None, _OFF, *known):
            raise ConfigError(f"{flag} '{name}' is not one of: off, {', '.join(sorted(known))}")


def _texts_in(part: object) -> Iterator[str]:
    """All texts that a dialect is made of, those in its patterns included."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, re.Pattern):
        yield part.pattern.replace("\\", "")
    elif isinstance(part, tuple):
        for item in part:
            yield from _texts_in(item)
    elif is_dataclass(part):
        for field in fields(part):
            yield from _texts_in(getattr(part, field.name))
