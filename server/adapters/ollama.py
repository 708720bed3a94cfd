"""Ollama requests to prompts, settings and rules. The way back is `ollama_reply.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pippin.core.engine.client import ModelCard
from pippin.core.errors import InvalidRequestError
from pippin.core.messages import (
    ChatPrompt,
    Message,
    Prompt,
    TextPart,
    TextPrompt,
    ToolCall,
    ToolSpec,
)
from pippin.core.reply_rules import ReplyRules, ResponseFormat, ToolChoice
from pippin.core.sampling_params import SamplingParams

from ..schemas.ollama import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaMessage,
    OllamaRequest,
    OllamaTool,
    OptionsWire,
)
from ..schemas.sampling_fields import SamplingFields
from .sampling import to_sampling_params

# Ollama's names of what `SamplingFields` calls otherwise, or the same.
_OPTIONS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "stop": "stop",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}

# What the chat API calls otherwise; see `named_as`.
FIELD_NAMES = {
    **{name: f"options.{ours}" for ours, name in _OPTIONS.items()},
    "max_tokens": "options.num_predict",
    "response_format": "format",
    "response_format.json_schema": "format",
    "seed": "options.seed",
}


def to_chat_prompt(wire: OllamaChatRequest) -> ChatPrompt:
    """The conversation."""
    return _chat(wire, _to_messages(wire.messages), wire.tools or ())


def to_generate_prompt(wire: OllamaGenerateRequest) -> Prompt:
    """A text, or a conversation of one turn.

    Raises:
        InvalidRequestError: ``raw`` together with what needs the chat template.
    """
    if wire.raw:
        if wire.system or wire.think is not None:
            raise InvalidRequestError("'raw' takes neither 'system' nor 'think'.", param="raw")
        return TextPrompt(wire.prompt)
    system = [Message(role="system", content=(TextPart(wire.system),))] if wire.system else []
    return _chat(wire, [*system, Message(role="user", content=(TextPart(wire.prompt),))], ())


def to_params(wire: OllamaRequest, card: ModelCard) -> SamplingParams:
    """The settings.

    Raises:
        InvalidRequestError: An option is out of range, or asks for more than the model holds.
    """
    options = wire.options or OptionsWire()
    if options.num_ctx is not None and options.num_ctx > card.max_model_len:
        raise InvalidRequestError(
            f"'num_ctx' is {options.num_ctx}, but the model holds {card.max_model_len} tokens.",
            param="options.num_ctx",
        )
    if wire.top_logprobs and not wire.logprobs:
        raise InvalidRequestError(
            "'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs"
        )
    given = {name: getattr(options, ours) for ours, name in _OPTIONS.items()}
    fields = SamplingFields(
        model=wire.model, seed=None if options.seed == -1 else options.seed, **given
    )
    num_predict = -1 if options.num_predict is None else options.num_predict
    return to_sampling_params(
        fields,
        card,
        max_tokens=None if num_predict < 0 else num_predict,
        num_logprobs=(wire.top_logprobs or 0) if wire.logprobs else None,
    )


def to_rules(wire: OllamaRequest) -> ReplyRules | None:
    """What the answer must be made of; ``None`` for raw text."""
    form = None
    if isinstance(wire.format, dict):
        form = ResponseFormat("json_schema", wire.format)
    elif wire.format == "json":
        form = ResponseFormat("json_object")
    elif isinstance(wire, OllamaGenerateRequest) and wire.raw:
        return None
    has_tools = isinstance(wire, OllamaChatRequest) and bool(wire.tools)
    return ReplyRules(tool_choice=ToolChoice("auto" if has_tools else "none"), response_format=form)


def _chat(
    wire: OllamaRequest, messages: Sequence[Message], tools: Sequence[OllamaTool]
) -> ChatPrompt:
    kwargs: dict[str, Any] = {"enable_thinking": True} if wire.think is True else {}
    effort = wire.think if isinstance(wire.think, str) else None
    is_begun = messages[-1].role == "assistant" and not messages[-1].tool_calls
    return ChatPrompt(
        messages=tuple(messages),
        tools=tuple(
            ToolSpec(
                name=tool.function.name,
                description=tool.function.description,
                parameters=tool.function.parameters or {"type": "object", "properties": {}},
            )
            for tool in tools
        ),
        reasoning_effort="none" if wire.think is False else effort,
        template_kwargs=kwargs,
        add_generation_prompt=not is_begun,
        continue_final_message=is_begun,
    )


def _to_messages(wires: Sequence[OllamaMessage]) -> list[Message]:
    """The turns. Calls that have no id get one, so that their results can name them."""
    messages = []
    unanswered: list[ToolCall] = []
    for index, wire in enumerate(wires):
        calls = [
            ToolCall(
                call_id=call.id or f"call_{index}_{number}",
                name=call.function.name,
                arguments=call.function.arguments,
            )
            for number, call in enumerate(wire.tool_calls or ())
        ]
        unanswered += calls
        messages.append(
            Message(
                role=wire.role,
                content=(TextPart(wire.content),) if wire.content else (),
                name=wire.tool_name,
                tool_calls=tuple(calls),
                tool_call_id=_answered(wire, unanswered, index) if wire.role == "tool" else None,
                reasoning=wire.thinking,
            )
        )
    return messages


def _answered(wire: OllamaMessage, unanswered: list[ToolCall], index: int) -> str:
    """Take the call that a result answers off the list, and return its id."""
    for position, call in enumerate(unanswered):
        if wire.tool_call_id in (None, call.call_id) and wire.tool_name in (None, call.name):
            return unanswered.pop(position).call_id
    # The turn that called may have been cut off the history.
    return wire.tool_call_id or f"call_{index}"
