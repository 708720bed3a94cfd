"""``POST /v1/chat/completions``: what may be asked.

Source: platform.openai.com/docs/api-reference/chat/create.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Json

from .sampling_fields import SamplingFields
from .wire_model import WireModel, only


class TextPartWire(WireModel):
    """Plain text."""

    type: Literal["text"]
    text: str


class RefusalPartWire(WireModel):
    """What the assistant said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


class MediaPartWire(WireModel):
    """Known by name so that it can be refused by name, whatever else stands in it."""

    model_config = ConfigDict(extra="allow")

    type: Literal["image_url", "input_audio", "file", "video_url", "audio_url"]


PartWire = Annotated[TextPartWire | RefusalPartWire | MediaPartWire, Field(discriminator="type")]
ContentWire = str | Annotated[tuple[PartWire, ...], Field(min_length=1)]


class InstructionMessage(WireModel):
    """A rule for the assistant."""

    role: Literal["system", "developer"]
    content: ContentWire
    name: str | None = None


class UserMessage(WireModel):
    """A turn of the person."""

    role: Literal["user"]
    content: ContentWire
    name: str | None = None


class FunctionCallWire(WireModel):
    """A called function. ``arguments`` is a JSON object in a string, decoded here."""

    name: str
    arguments: Json[dict[str, Any]]


class ToolCallWire(WireModel):
    """A call that the assistant made. ``index`` is what a stream had; it says nothing here."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCallWire
    index: int | None = None


class AssistantMessage(WireModel):
    """An earlier answer, as this API or a like one gave it.

    Attributes:
        reasoning: What it thought before, for templates that show it; ``reasoning_content`` is
            another name for the same.
    """

    role: Literal["assistant"]
    content: ContentWire | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: tuple[ToolCallWire, ...] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    audio: Annotated[object, only()] = None
    annotations: Annotated[object, only([])] = None
    function_call: Annotated[object, only()] = None


class ToolMessage(WireModel):
    """What a tool answered."""

    role: Literal["tool"]
    content: ContentWire
    tool_call_id: str
    name: str | None = None


MessageWire = Annotated[
    InstructionMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class ChatCompletionRequest(SamplingFields):
    """A request.

    ``user``, ``metadata``, ``safety_identifier`` and ``prompt_cache_key`` are hints and labels by
    their nature: taken, without effect on the answer. The prefix cache needs no key; to keep
    callers apart there is ``cache_salt``.
    """

    messages: Annotated[tuple[MessageWire, ...], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None

    audio: Annotated[object, only()] = None
    function_call: Annotated[object, only("none")] = None
    functions: Annotated[object, only([])] = None
    modalities: Annotated[object, only(["text"])] = None
    moderation: Annotated[object, only()] = None
    parallel_tool_calls: Annotated[object, only()] = None
    prediction: Annotated[object, only()] = None
    prompt_cache_options: Annotated[object, only()] = None
    prompt_cache_retention: Annotated[object, only()] = None
    reasoning_effort: Annotated[object, only()] = None
    response_format: Annotated[object, only({"type": "text"})] = None
    service_tier: Annotated[object, only("auto", "default")] = None
    store: Annotated[object, only(False)] = None
    tool_choice: Annotated[object, only("none")] = None
    tools: Annotated[object, only([])] = None
    verbosity: Annotated[object, only()] = None
    web_search_options: Annotated[object, only()] = None
