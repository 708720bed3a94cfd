"""Ollama's API: what may be asked.

Source: docs.ollama.com/api, and the request types of the ``ollama`` Python package.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .openai_chat import FunctionWire
from .wire_model import WireModel, only


class OptionsWire(WireModel):
    """Ollama's ``options``.

    Those of them that only say how to load or compute are refused like all that cannot be honoured:
    the server was told when it started.

    Attributes:
        num_ctx: Tokens that must fit; refused if the model holds fewer.
        num_predict: -1 and -2 set no bound but the context.
        seed: -1 for any.
        repeat_last_n: -1 only, all of the context.
    """

    num_ctx: Annotated[int, Field(ge=1)] | None = None
    num_predict: Annotated[int, Field(ge=-2)] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_last_n: Annotated[object, only(-1)] = None
    num_keep: Annotated[object, only(0, -1)] = None
    typical_p: Annotated[object, only(1, 1.0)] = None
    tfs_z: Annotated[object, only(1, 1.0)] = None
    mirostat: Annotated[object, only(0)] = None
    mirostat_tau: Annotated[object, only()] = None
    mirostat_eta: Annotated[object, only()] = None
    penalize_newline: Annotated[object, only(True)] = None
    num_batch: Annotated[object, only()] = None
    num_gpu: Annotated[object, only()] = None
    main_gpu: Annotated[object, only()] = None
    num_thread: Annotated[object, only()] = None
    numa: Annotated[object, only(False)] = None
    use_mmap: Annotated[object, only()] = None
    use_mlock: Annotated[object, only(False)] = None
    low_vram: Annotated[object, only(False)] = None
    f16_kv: Annotated[object, only()] = None
    logits_all: Annotated[object, only(False)] = None
    vocab_only: Annotated[object, only(False)] = None
    embedding_only: Annotated[object, only(False)] = None


class OllamaRequest(WireModel):
    """Fields that chat and generate have in common.

    Attributes:
        stream: True unless said otherwise.
        format: ``json``, or a JSON schema.
        think: Whether to reason before the answer, or how hard.
        keep_alive: How long to keep the model loaded; this server always does, so that only 0
            without anything to answer, a wish to unload, is refused.
        truncate: Whether to cut a prompt that is too long; it is refused instead. ``shift`` would
            cut it during the answer.
    """

    model: Annotated[str, Field(min_length=1)]
    stream: bool | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: OptionsWire | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    truncate: Annotated[object, only(False)] = None
    shift: Annotated[object, only(False)] = None


class CalledFunctionWire(WireModel):
    """A function that the assistant called, and its place among the calls of its turn."""

    name: str
    arguments: dict[str, Any]
    index: int | None = None


class OllamaToolCall(WireModel):
    """A call of the history."""

    function: CalledFunctionWire
    id: str | None = None
    type: Literal["function"] | None = None


class OllamaMessage(WireModel):
    """A turn.

    Attributes:
        tool_name: Whose result a ``tool`` message is; without ``tool_call_id`` it answers the
            first call of this tool that has no result yet.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    tool_calls: tuple[OllamaToolCall, ...] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    images: Annotated[object, only([])] = None


class OllamaTool(WireModel):
    """A tool of the caller's."""

    type: Literal["function"] = "function"
    function: FunctionWire


class OllamaChatRequest(OllamaRequest):
    """``POST /api/chat``; without messages it only asks whether the model is there."""

    messages: tuple[OllamaMessage, ...] = ()
    tools: tuple[OllamaTool, ...] | None = None


class OllamaGenerateRequest(OllamaRequest):
    """``POST /api/generate``; without a prompt it only asks whether the model is there.

    Attributes:
        system: A first message, before the prompt.
        raw: Whether the prompt is taken as it is, and not put into the chat template.
    """

    prompt: str = ""
    system: str | None = None
    raw: bool | None = None
    suffix: Annotated[object, only("")] = None
    template: Annotated[object, only("")] = None
    context: Annotated[object, only([])] = None
    images: Annotated[object, only([])] = None
    width: Annotated[object, only(0)] = None
    height: Annotated[object, only(0)] = None
    steps: Annotated[object, only(0)] = None


class OllamaShowRequest(WireModel):
    """``POST /api/show``.

    Attributes:
        name: An older word for ``model``.
        verbose: Has no effect: there are no long fields to leave out.
    """

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
    system: Annotated[object, only("")] = None
    template: Annotated[object, only("")] = None
    options: Annotated[object, only()] = None


class OllamaEmbedRequest(WireModel):
    """``POST /api/embed``, and the older ``/api/embeddings``: known so that they can be refused."""

    model: Annotated[str, Field(min_length=1)]
    input: str | tuple[str, ...] | None = None
    prompt: str | None = None
    truncate: bool | None = None
    dimensions: int | None = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None
