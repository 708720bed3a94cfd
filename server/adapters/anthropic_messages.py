"""Messages requests to prompts, rules and settings. The way back is `anthropic_reply.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from typing import TypeVar

from pippin.core.engine.client import ModelCard
from pippin.core.errors import InvalidRequestError, UnsupportedFeatureError
from pippin.core.messages import ChatPrompt, Message, TextPart, ToolCall
from pippin.core.reply_rules import ReplyRules, ResponseFormat
from pippin.core.sampling_params import SamplingParams

from ..schemas.anthropic_messages import (
    AssistantMessageWire,
    ContentSourceWire,
    ContextManagementWire,
    DocumentBlockWire,
    MessagesRequest,
    MessageWire,
    PlainTextSourceWire,
    PromptFields,
    RedactedThinkingBlockWire,
    SearchResultBlockWire,
    SystemMessageWire,
    TextBlockWire,
    ThinkingBlockWire,
    ToolChangeBlockWire,
    ToolReferenceBlockWire,
    ToolResultBlockWire,
    ToolUseBlockWire,
    UnsupportedBlockWire,
)
from ..schemas.sampling_fields import SamplingFields
from .anthropic_tools import to_tool_choice, to_tools
from .sampling import to_sampling_params

# Claude Code begins its system text with a line that differs from request to request. It speaks to
# Anthropic's accounts, not to a model, and no prefix would ever be found in the cache behind it.
_BILLING_HEADER = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?")

_BlockT = TypeVar("_BlockT")


def to_prompt(wire: PromptFields) -> ChatPrompt:
    """The conversation. Turns of the user, or of the assistant, that follow one another are one.

    Raises:
        InvalidRequestError: A part of it cannot be taken; names it.
    """
    messages = _to_system(wire)
    call_ids: set[str] = set()
    for index, message in enumerate(wire.messages):
        _check_results(message, f"messages.{index}.content", call_ids)
        for turn in _to_turns(message, f"messages.{index}.content"):
            call_ids.update(call.call_id for call in turn.tool_calls)
            if messages and messages[-1].role == turn.role in ("user", "assistant"):
                messages[-1] = _joined(messages[-1], turn)
            else:
                messages.append(turn)
    is_begun = _check_last(messages)
    return ChatPrompt(
        messages=tuple(_clear_thinking(messages, wire.context_management)),
        tools=to_tools(wire),
        reasoning_effort=_reasoning_effort(wire),
        add_generation_prompt=not is_begun,
        continue_final_message=is_begun,
    )


def to_rules(wire: PromptFields) -> ReplyRules:
    """What the answer must be made of.

    Raises:
        InvalidRequestError: Fields contradict each other; names one.
    """
    choice = wire.tool_choice
    configured = wire.output_config and wire.output_config.format
    if configured and wire.output_format:
        raise InvalidRequestError(
            "'output_format' is the old name of 'output_config.format': give one of them.",
            param="output_format",
        )
    output_format = configured or wire.output_format
    return ReplyRules(
        tool_choice=to_tool_choice(wire),
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
        response_format=ResponseFormat("json_schema", output_format.schema_)
        if output_format
        else None,
        thinking_budget=_thinking_budget(wire),
    )


def field_names(wire: PromptFields) -> dict[str, str]:
    """What the chat API calls otherwise; see `named_as`."""
    form = "output_format" if wire.output_format else "output_config.format"
    return {
        "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
        "response_format": form,
        "response_format.json_schema": form,
        "stop": "stop_sequences",
        "thinking_token_budget": "thinking.budget_tokens",
    }


def to_params(wire: MessagesRequest, card: ModelCard) -> SamplingParams:
    """The settings.

    Raises:
        InvalidRequestError: A value is out of range.
    """
    fields = SamplingFields(
        model=wire.model,
        temperature=wire.temperature,
        top_p=wire.top_p,
        top_k=wire.top_k,
        stop=wire.stop_sequences,
    )
    return to_sampling_params(fields, card, max_tokens=wire.max_tokens, num_logprobs=None)


def _to_system(wire: PromptFields) -> list[Message]:
    if wire.system is None:
        return []
    texts = [_BILLING_HEADER.sub("", text) for text in _texts_of(wire.system, "system")]
    parts = tuple(TextPart(text) for text in texts if text)
    return [Message(role="system", content=parts)] if parts else []


def _check_results(wire: MessageWire, where: str, call_ids: Set[str]) -> None:
    for index, block in enumerate(_blocks_of(wire.content)):
        if isinstance(block, ToolResultBlockWire) and block.tool_use_id not in call_ids:
            raise InvalidRequestError(
                f"{where}.{index}: unexpected `tool_use_id` found in `tool_result` blocks: "
                f"{block.tool_use_id}. A `tool_use` block with this id must come before.",
                param=f"{where}.{index}.tool_use_id",
            )


def _to_turns(wire: MessageWire, where: str) -> Iterator[Message]:
    if isinstance(wire, AssistantMessageWire):
        yield _to_assistant(wire, where)
        return
    if isinstance(wire, SystemMessageWire):
        parts = tuple(TextPart(text) for text in _texts_of(wire.content, where))
        yield Message(role="system", content=parts)
        return
    said: list[TextPart] = []
    for index, block in enumerate(_blocks_of(wire.content)):
        if not isinstance(block, ToolResultBlockWire):
            said.append(TextPart(_text_of(block, f"{where}.{index}")))
            continue
        if said:
            yield Message(role="user", content=tuple(said))
            said = []
        text = "".join(_texts_of(block.content or "", f"{where}.{index}.content"))
        # Chat templates know no failed results: it has to be said in words.
        content = (TextPart(f"Error: {text}" if block.is_error else text),)
        yield Message(role="tool", content=content, tool_call_id=block.tool_use_id)
    if said:
        yield Message(role="user", content=tuple(said))


def _to_assistant(wire: AssistantMessageWire, where: str) -> Message:
    said: list[TextPart] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for index, block in enumerate(_blocks_of(wire.content)):
        match block:
            case ThinkingBlockWire():
                thoughts.append(block.thinking)
            case RedactedThinkingBlockWire():
                pass  # only its author could read it
            case ToolUseBlockWire():
                call = ToolCall(call_id=block.id, name=block.name, arguments=block.input)
                calls.append(call)
            case _:
                said.append(TextPart(_text_of(block, f"{where}.{index}")))
    return Message(
        role="assistant",
        content=tuple(said),
        tool_calls=tuple(calls),
        reasoning="\n".join(filter(None, thoughts)) or None,
    )


def _blocks_of(content: str | Sequence[_BlockT]) -> Sequence[_BlockT | TextBlockWire]:
    return (TextBlockWire(type="text", text=content),) if isinstance(content, str) else content


_TextualBlock = (
    TextBlockWire
    | DocumentBlockWire
    | SearchResultBlockWire
    | ToolReferenceBlockWire
    | ToolChangeBlockWire
    | UnsupportedBlockWire
)


def _texts_of(content: str | Sequence[_TextualBlock], where: str) -> list[str]:
    return [_text_of(it, f"{where}.{index}") for index, it in enumerate(_blocks_of(content))]


def _text_of(block: _TextualBlock, where: str) -> str:
    match block:
        case TextBlockWire():
            return block.text
        case ToolReferenceBlockWire(tool_name=name):
            return f"The tool {name} can be called now.\n"
        case ToolChangeBlockWire(type=kind, tool=tool):
            adverb = "no longer" if kind == "tool_removal" else "now"
            return f"The tool {tool.name} can {adverb} be called.\n"
        case SearchResultBlockWire():
            found = (part.text for part in block.content)
            return "\n".join((block.title, block.source, *found, ""))
        case DocumentBlockWire(source=PlainTextSourceWire(data=text)):
            pass
        case DocumentBlockWire(source=ContentSourceWire(content=content)):
            text = "".join(_texts_of(content, f"{where}.source.content"))
        case _:
            refused = block.source if isinstance(block, DocumentBlockWire) else block
            where = f"{where}.source" if isinstance(block, DocumentBlockWire) else where
            raise UnsupportedFeatureError(
                f"'{where}' is of type '{refused.type}', which this server cannot take.",
                param=f"{where}.type",
            )
    return "\n".join((*filter(None, (block.title, block.context)), text, ""))


def _joined(first: Message, second: Message) -> Message:
    gap = (TextPart("\n\n"),) if first.content and second.content else ()
    thoughts = filter(None, (first.reasoning, second.reasoning))
    return replace(
        first,
        content=(*first.content, *gap, *second.content),
        tool_calls=(*first.tool_calls, *second.tool_calls),
        reasoning="\n".join(thoughts) or None,
    )


def _check_last(messages: list[Message]) -> bool:
    """Whether the last turn is the beginning of the answer; one that says nothing is taken off."""
    if not messages or messages[-1].role != "assistant":
        return False
    last = messages[-1]
    if last.tool_calls or (last.reasoning and not last.text):
        raise InvalidRequestError(
            "An answer can be begun with text only: 'messages' ends with a call that no "
            "'tool_result' follows, or with thinking.",
            param="messages",
        )
    if not last.text:
        messages.pop()
    return bool(last.text)


def _clear_thinking(
    messages: Sequence[Message], wire: ContextManagementWire | None
) -> Sequence[Message]:
    for edit in (wire and wire.edits) or ():
        if edit.keep == "all":
            continue
        num_kept = edit.keep.value if edit.keep else 1
        thinking = [index for index, message in enumerate(messages) if message.reasoning]
        cleared = set(thinking[:-num_kept])
        messages = [
            replace(message, reasoning=None) if index in cleared else message
            for index, message in enumerate(messages)
        ]
    return messages


def _reasoning_effort(wire: PromptFields) -> str | None:
    if wire.thinking is not None and wire.thinking.type == "disabled":
        return "none"
    effort = wire.output_config.effort if wire.output_config else None
    if effort is None:
        # Anthropic's own default. Who does not speak of thinking leaves it to the template.
        return None if wire.thinking is None else "high"
    return "xhigh" if effort == "max" else effort


def _thinking_budget(wire: PromptFields) -> int | None:
    thinking = wire.thinking
    if thinking is None:
        return None
    if thinking.budget_tokens is not None and thinking.type != "enabled":
        raise InvalidRequestError(
            f"'thinking.budget_tokens' does not go with thinking of type '{thinking.type}'.",
            param="thinking.budget_tokens",
        )
    # Templates that cannot switch it off exist.
    return 0 if thinking.type == "disabled" else thinking.budget_tokens
