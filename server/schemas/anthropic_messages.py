"""``POST /v1/messages`` and ``/v1/messages/count_tokens``: what may be asked.

``cache_control`` may stand wherever Anthropic lets it: prefixes are cached without being told.

Source: platform.claude.com/docs/en/api/messages, and the request types of anthropic-sdk-python.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from pippin.core.sampling_params import MAX_STOP_STRINGS

from .wire_model import WireModel, only


class CacheControlWire(WireModel):
    """A hint: here a prefix ends that will come again."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class CacheableWire(WireModel):
    """What may carry the hint."""

    cache_control: CacheControlWire | None = None


class CitationsWire(WireModel):
    """Citations are never made."""

    enabled: Annotated[object, only(False)] = None


class TextBlockWire(CacheableWire):
    """Plain text."""

    type: Literal["text"]
    text: str
    citations: Annotated[object, only([])] = None


class UnsupportedBlockWire(WireModel):
    """Known by name so that it can be refused by name, whatever else stands in it."""

    model_config = ConfigDict(extra="allow")

    type: Literal[
        "image",
        "base64",
        "url",
        "file",
        "browser_state",
        "container_upload",
        "server_tool_use",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "mcp_tool_use",
        "mcp_tool_result",
        "compaction",
    ]


class ToolReferenceBlockWire(CacheableWire):
    """What a search for tools has found, in its result: from here on the model knows the tool."""

    type: Literal["tool_reference"]
    tool_name: str


class ToolNameWire(WireModel):
    """A tool of ``tools``."""

    type: Literal["tool_reference"]
    name: str


class ToolChangeBlockWire(CacheableWire):
    """From here on there is a tool more or less. Tools that ``tools`` does not hold are refused."""

    type: Literal["tool_addition", "tool_removal"]
    tool: ToolNameWire


TextContentWire = (
    str
    | tuple[
        Annotated[TextBlockWire | UnsupportedBlockWire, Field(discriminator="type")],
        ...,
    ]
)


class PlainTextSourceWire(WireModel):
    """A document's text."""

    type: Literal["text"]
    media_type: Literal["text/plain"]
    data: str


class ContentSourceWire(WireModel):
    """A document in blocks."""

    type: Literal["content"]
    content: TextContentWire


class DocumentBlockWire(CacheableWire):
    """A document; PDF, by value or by reference, is refused by the name of its source."""

    type: Literal["document"]
    source: Annotated[
        PlainTextSourceWire | ContentSourceWire | UnsupportedBlockWire, Field(discriminator="type")
    ]
    title: str | None = None
    context: str | None = None
    citations: CitationsWire | None = None


class SearchResultBlockWire(CacheableWire):
    """What a search of the caller's has found."""

    type: Literal["search_result"]
    source: str
    title: str
    content: tuple[TextBlockWire, ...]
    citations: CitationsWire | None = None


class ToolResultBlockWire(CacheableWire):
    """What a tool answered."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        str
        | tuple[
            Annotated[
                TextBlockWire
                | DocumentBlockWire
                | SearchResultBlockWire
                | ToolReferenceBlockWire
                | UnsupportedBlockWire,
                Field(discriminator="type"),
            ],
            ...,
        ]
        | None
    ) = None
    is_error: bool | None = None
    toolset_name: Annotated[object, only()] = None


class ThinkingBlockWire(WireModel):
    """What the assistant thought. Whoever signed it, the signature is not looked at."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlockWire(WireModel):
    """Thoughts that only their author can read: nothing for another model."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlockWire(CacheableWire):
    """A call that the assistant made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: Annotated[object, only({"type": "direct"})] = None
    toolset_name: Annotated[object, only()] = None


UserBlockWire = Annotated[
    TextBlockWire
    | DocumentBlockWire
    | SearchResultBlockWire
    | ToolResultBlockWire
    | UnsupportedBlockWire,
    Field(discriminator="type"),
]
AssistantBlockWire = Annotated[
    TextBlockWire
    | ThinkingBlockWire
    | RedactedThinkingBlockWire
    | ToolUseBlockWire
    | UnsupportedBlockWire,
    Field(discriminator="type"),
]


class UserMessageWire(WireModel):
    """A turn of the person, or of the tools."""

    role: Literal["user"]
    content: str | Annotated[tuple[UserBlockWire, ...], Field(min_length=1)]


class AssistantMessageWire(WireModel):
    """An earlier answer or, as the last message, the beginning of the one that is wanted."""

    role: Literal["assistant"]
    content: str | tuple[AssistantBlockWire, ...]


class SystemMessageWire(WireModel):
    """A rule that holds from here on."""

    role: Literal["system"]
    content: (
        str
        | tuple[
            Annotated[
                TextBlockWire | ToolChangeBlockWire | UnsupportedBlockWire,
                Field(discriminator="type"),
            ],
            ...,
        ]
    )


MessageWire = Annotated[
    UserMessageWire | AssistantMessageWire | SystemMessageWire, Field(discriminator="role")
]


class ToolWire(CacheableWire):
    """A tool of the caller's. Its input is streamed as it comes, however eager the caller is.

    Attributes:
        defer_loading: Keeps it from the model until the conversation loads it.
    """

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    allowed_callers: Annotated[object, only(["direct"])] = None
    defer_loading: bool | None = None
    input_examples: Annotated[object, only([])] = None


class ServerToolWire(WireModel):
    """A tool that Anthropic runs, or whose form it keeps: refused by the name of its type."""

    model_config = ConfigDict(extra="allow")

    type: str


def _kind_of_tool(value: object) -> str:
    is_typed = isinstance(value, dict) and value.get("type") not in (None, "custom")
    return "server tool" if is_typed else "tool"


AnyToolWire = Annotated[
    Annotated[ToolWire, Tag("tool")] | Annotated[ServerToolWire, Tag("server tool")],
    Discriminator(_kind_of_tool),
]


class ToolChoiceWire(WireModel):
    """Whether to call."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class NamedToolChoiceWire(WireModel):
    """Which tool to call."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class ThinkingWire(WireModel):
    """Whether to think.

    Attributes:
        budget_tokens: With ``enabled`` only, and of any size; without it there is no limit.
        display: ``omitted`` keeps the thoughts themselves out of the answer.
    """

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class JsonFormatWire(WireModel):
    """The content is JSON that follows the schema."""

    # `schema` is a method of pydantic's base class.
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfigWire(WireModel):
    """What the answer is to be like.

    Attributes:
        effort: How much to think, for models that know degrees.
    """

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormatWire | None = None


class ThinkingTurnsWire(WireModel):
    """The last so many answers that hold thoughts."""

    type: Literal["thinking_turns"]
    value: Annotated[int, Field(ge=1)]


class ClearThinkingWire(WireModel):
    """Leave the thoughts of older answers out of the prompt; by default all but the last's."""

    type: Literal["clear_thinking_20251015"]
    keep: Literal["all"] | ThinkingTurnsWire | None = None


class ContextManagementWire(WireModel):
    """Edits of the prompt."""

    edits: tuple[ClearThinkingWire, ...] | None = None


class MetadataWire(WireModel):
    """A label, without effect on the answer."""

    user_id: str | None = None


class PromptFields(CacheableWire):
    """What decides about the prompt: all there is to say for a count of tokens."""

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[tuple[MessageWire, ...], Field(min_length=1)]
    system: TextContentWire | None = None
    tools: tuple[AnyToolWire, ...] | None = None
    tool_choice: (
        Annotated[ToolChoiceWire | NamedToolChoiceWire, Field(discriminator="type")] | None
    ) = None
    thinking: ThinkingWire | None = None
    output_config: OutputConfigWire | None = None
    output_format: JsonFormatWire | None = None
    context_management: ContextManagementWire | None = None
    mcp_servers: Annotated[object, only([])] = None
    speed: Annotated[object, only("standard")] = None
    user_profile_id: Annotated[object, only()] = None


class CountTokensRequest(PromptFields):
    """How long would the prompt be?"""


class MessagesRequest(PromptFields):
    """A request.

    Attributes:
        max_tokens: 0 computes the prompt into the cache and answers nothing. If more than the
            context holds, the answer may take what the context leaves.
    """

    max_tokens: Annotated[int, Field(ge=0, lt=2**31)]
    stop_sequences: (
        Annotated[
            tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=MAX_STOP_STRINGS)
        ]
        | None
    ) = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    metadata: MetadataWire | None = None
    service_tier: Annotated[object, only("auto", "standard_only")] = None
    container: Annotated[object, only()] = None
    diagnostics: Annotated[object, only()] = None
    inference_geo: Annotated[object, only()] = None
    thread: Annotated[object, only()] = None
