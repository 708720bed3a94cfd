"""``POST /v1/chat/completions``: what may be asked.

Source: platform.openai.com/docs/api-reference/chat/create.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from .sampling_fields import SamplingFields
from .wire_model import WireModel, only

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


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
    """A called function. ``arguments`` is what the model wrote: a JSON object, if it was whole.

    ``parsed_arguments`` is what openai-python's helpers made of them, and sends back.
    """

    name: str
    arguments: str
    parsed_arguments: object = None


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
        parsed: What openai-python's helpers made of the content, and send back.
        provider_specific_fields: Where LiteLLM keeps fields of an answer that it does not know.
    """

    role: Literal["assistant"]
    content: ContentWire | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: tuple[ToolCallWire, ...] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    parsed: object = None
    provider_specific_fields: object = None
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


ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")]


class FunctionWire(WireModel):
    """A function that may be called.

    Attributes:
        parameters: JSON schema of an object; absent for no arguments.
        strict: Whether the arguments are held to the schema.
    """

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolWire(WireModel):
    """A tool of the caller's."""

    type: Literal["function"]
    function: FunctionWire


class FunctionNameWire(WireModel):
    """A function by its name."""

    name: str


class NamedToolWire(WireModel):
    """The tool that must be called, or one of those that may."""

    type: Literal["function"]
    function: FunctionNameWire


class AllowedToolsWire(WireModel):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[tuple[NamedToolWire, ...], Field(min_length=1)]


class AllowedToolsChoiceWire(WireModel):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolsWire


ToolChoiceWire = (
    Literal["none", "auto", "required"]
    | Annotated[NamedToolWire | AllowedToolsChoiceWire, Field(discriminator="type")]
)


class TextFormatWire(WireModel):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormatWire(WireModel):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaWire(WireModel):
    """A schema with a name. It is always held to, whatever ``strict`` says."""

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class JsonSchemaFormatWire(WireModel):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaWire


class StructuralTagFormatWire(WireModel):
    """Text with structures inside, in the older or the newer form; an extension."""

    type: Literal["structural_tag"]
    format: dict[str, Any] | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None


ResponseFormatWire = Annotated[
    TextFormatWire | JsonObjectFormatWire | JsonSchemaFormatWire | StructuralTagFormatWire,
    Field(discriminator="type"),
]


class StructuredOutputsWire(WireModel):
    """The form of the content; an extension that vLLM has as well. Exactly one may be set."""

    json_: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    json_object: Literal[True] | None = None
    regex: str | None = None
    choice: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    grammar: str | None = None
    structural_tag: dict[str, Any] | str | None = None


class ChatCompletionRequest(SamplingFields):
    """A request.

    ``user``, ``metadata``, ``safety_identifier`` and ``prompt_cache_key`` are hints and labels by
    their nature: taken, without effect on the answer. The prefix cache needs no key; to keep
    callers apart there is ``cache_salt``. A model that does not reason honours any
    ``reasoning_effort``.

    From ``structured_outputs`` on, fields are extensions of other local servers.
    """

    messages: Annotated[tuple[MessageWire, ...], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    tools: tuple[ToolWire, ...] | None = None
    tool_choice: ToolChoiceWire | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormatWire | None = None
    reasoning_effort: ReasoningEffort | None = None

    structured_outputs: StructuredOutputsWire | None = None
    thinking_token_budget: Annotated[int, Field(ge=0)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    audio: Annotated[object, only()] = None
    function_call: Annotated[object, only("none")] = None
    functions: Annotated[object, only([])] = None
    modalities: Annotated[object, only(["text"])] = None
    moderation: Annotated[object, only()] = None
    prediction: Annotated[object, only()] = None
    prompt_cache_options: Annotated[object, only()] = None
    prompt_cache_retention: Annotated[object, only()] = None
    service_tier: Annotated[object, only("auto", "default")] = None
    store: Annotated[object, only(False)] = None
    verbosity: Annotated[object, only()] = None
    web_search_options: Annotated[object, only()] = None
