"""``POST /v1/responses``: what may be asked.

Items that the server gave out are items that it takes, so a stored answer reads like an input.

Source: platform.openai.com/docs/api-reference/responses; openresponses.org/specification.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter
from pydantic_core import PydanticCustomError

from .openai_chat import ReasoningEffort, ToolName
from .sampling_fields import SamplingFields, StreamOptions
from .wire_model import WireModel, only

Status = Literal["in_progress", "completed", "incomplete"]


def _check_numbers(value: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise PydanticCustomError("not_finite", "It holds a number that JSON cannot") from None
    return value


# What the response repeats has to be JSON, of which the parser takes more than there is.
JsonObject = Annotated[dict[str, Any], AfterValidator(_check_numbers)]


class TextPartWire(WireModel):
    """Text: of the caller, or of the assistant. ``logprobs`` say nothing on the way in."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[object, only([])] = None
    logprobs: object = None


class RefusalPartWire(WireModel):
    """What the assistant said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


class MediaPartWire(WireModel):
    """Known by name so that it can be refused by name, whatever else stands in it."""

    model_config = ConfigDict(extra="allow")

    type: Literal["input_image", "input_file", "input_audio"]


PartWire = Annotated[TextPartWire | RefusalPartWire | MediaPartWire, Field(discriminator="type")]
ContentWire: TypeAlias = str | tuple[PartWire, ...]


class MessageItem(WireModel):
    """A turn of anyone. The only item whose ``type`` may be left out."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: ContentWire
    id: str | None = None
    status: Status | None = None
    phase: Annotated[object, only("final_answer")] = None


class FunctionCallItem(WireModel):
    """A call that the assistant made. ``arguments`` is a JSON object in a string."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    namespace: str | None = None
    id: str | None = None
    status: Status | None = None


class CustomCallItem(WireModel):
    """A call that the assistant made, with plain text."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    input: str
    namespace: str | None = None
    id: str | None = None
    status: Status | None = None


class FunctionOutputItem(WireModel):
    """What a tool answered."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: ContentWire
    id: str | None = None
    status: Status | None = None


class ReasoningPartWire(WireModel):
    """A piece of reasoning, or of its summary."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(WireModel):
    """What the assistant thought before.

    Attributes:
        encrypted_content: Ours holds the text once more, for callers that send back only this.
    """

    type: Literal["reasoning"]
    summary: tuple[ReasoningPartWire, ...] = ()
    content: tuple[ReasoningPartWire, ...] | None = None
    encrypted_content: str | None = None
    id: str | None = None
    status: Status | None = None


class ItemReference(WireModel):
    """An item of a stored response, by its id."""

    type: Literal["item_reference"] | None = None
    id: str


def _item_type(value: object) -> object:
    if not isinstance(value, dict):
        return None
    return value.get("type") or ("message" if "role" in value else "item_reference")


_ITEM_TYPES = (
    *("message", "function_call", "function_call_output", "custom_tool_call"),
    *("custom_tool_call_output", "reasoning", "item_reference"),
)
StoredItem: TypeAlias = (
    MessageItem | FunctionCallItem | CustomCallItem | FunctionOutputItem | ReasoningItem
)
ItemWire = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[CustomCallItem, Tag("custom_tool_call")]
    | Annotated[FunctionOutputItem, Tag("custom_tool_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(
        _item_type,
        # The prefix lets `parse_body` name the field as it does for plain discriminators.
        custom_error_type="union_tag_unknown",
        custom_error_message=f"Expected one of {', '.join(map(repr, _ITEM_TYPES))}",
        custom_error_context={"discriminator": "type"},
    ),
]
STORED_ITEMS: TypeAdapter[tuple[StoredItem, ...]] = TypeAdapter(
    tuple[Annotated[StoredItem, Field(discriminator="type")], ...]
)


class CallableToolWire(WireModel):
    """What all tools have in common that the caller runs."""

    name: ToolName
    description: str | None = None
    defer_loading: Annotated[object, only(False)] = None
    allowed_callers: Annotated[object, only(["direct"])] = None


class FunctionToolWire(CallableToolWire):
    """A function that the model may call."""

    type: Literal["function"]
    parameters: JsonObject | None = None
    strict: bool | None = None


class TextFormat(WireModel):
    """Any text."""

    type: Literal["text"]


class GrammarFormat(WireModel):
    """Text of a grammar."""

    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: str


class CustomToolWire(CallableToolWire):
    """A tool whose input is plain text."""

    type: Literal["custom"]
    format: Annotated[TextFormat | GrammarFormat, Field(discriminator="type")] | None = None


class NamespaceToolWire(WireModel):
    """A group of tools."""

    type: Literal["namespace"]
    name: ToolName
    description: str
    tools: Annotated[
        tuple[Annotated[FunctionToolWire | CustomToolWire, Field(discriminator="type")], ...],
        Field(min_length=1),
    ]


class WebSearchToolWire(WireModel):
    """Known so that it can be left out; how it would search does not matter then."""

    model_config = ConfigDict(extra="allow")

    type: Literal[
        "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11"
    ]


ToolWire = Annotated[
    FunctionToolWire | CustomToolWire | NamespaceToolWire | WebSearchToolWire,
    Field(discriminator="type"),
]


class NamedTool(WireModel):
    """One tool."""

    type: Literal["function", "custom"]
    name: str


class AllowedTools(WireModel):
    """Some of the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[tuple[NamedTool, ...], Field(min_length=1)]


ToolChoiceWire = (
    Literal["none", "auto", "required"]
    | Annotated[NamedTool | AllowedTools, Field(discriminator="type")]
)


class PlainFormat(WireModel):
    """Free text, or any JSON object."""

    type: Literal["text", "json_object"]


class JsonSchemaFormat(WireModel):
    """JSON of one schema, which is enforced whatever ``strict`` says."""

    type: Literal["json_schema"]
    name: str
    json_schema: JsonObject = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextConfig(WireModel):
    """What the text must be."""

    format: Annotated[PlainFormat | JsonSchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Annotated[object, only("medium")] = None


class ReasoningConfig(WireModel):
    """How much the model may think. There are no summaries: the reasoning itself is shown."""

    effort: ReasoningEffort | None = None
    summary: Annotated[object, only("auto")] = None
    generate_summary: Annotated[object, only("auto")] = None
    context: Annotated[object, only("auto")] = None
    mode: Annotated[object, only("standard")] = None


class ResponseStreamOptions(StreamOptions):
    """Usage always comes with the last event."""

    include_usage: Annotated[bool | None, only()] = None


# All but two ask for details of tools and media that cannot occur here.
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
MetadataWire = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class ConversationReference(WireModel):
    """A conversation, by its id."""

    id: str


class InputFields(WireModel):
    """What makes up the prompt, or says how."""

    input: str | tuple[ItemWire, ...] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationReference | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningConfig | None = None
    text: TextConfig | None = None
    tool_choice: ToolChoiceWire | None = None
    tools: tuple[ToolWire, ...] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def conversation_id(self) -> str | None:
        """The conversation that is continued, whichever way it was named."""
        named = self.conversation
        return named.id if isinstance(named, ConversationReference) else named


class InputTokensRequest(InputFields):
    """``POST /v1/responses/input_tokens``: how long the prompt is."""

    model: str | None = None
    personality: Annotated[object, only()] = None


class ResponsesRequest(SamplingFields, InputFields):
    """A request.

    ``user``, ``metadata``, ``safety_identifier``, ``prompt_cache_key`` and Codex's
    ``client_metadata`` are labels and hints by their nature. ``max_tool_calls`` bounds calls of
    built-in tools, of which there are none.
    """

    input: str | tuple[ItemWire, ...]
    store: bool | None = None
    include: tuple[Includable, ...] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    metadata: MetadataWire | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    stream_options: ResponseStreamOptions | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    n: Literal[1] | None = None

    client_metadata: dict[str, str] | None = None
    thinking_token_budget: Annotated[int, Field(ge=0)] | None = None

    access_programs: Annotated[object, only()] = None
    background: Annotated[object, only(False)] = None
    background_options: Annotated[object, only()] = None
    context_management: Annotated[object, only([])] = None
    image: Annotated[object, only()] = None
    moderation: Annotated[object, only()] = None
    prompt: Annotated[object, only()] = None
    prompt_cache_options: Annotated[object, only()] = None
    prompt_cache_retention: Annotated[object, only()] = None
    service_tier: Annotated[object, only("auto", "default")] = None
