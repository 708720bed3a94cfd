"""pippin as a library: a model in this process, on the engine that the server runs.

`LLM` is for scripts and notebooks, `AsyncLLM` for programs with an event loop. Both batch what they
are given at once, reuse prefixes over calls, and raise the errors of `pippin.core.errors`. What
callers give and get is all to be had from here.
"""

from ..config import EngineConfig
from ..messages import Message, ToolCall, ToolSpec
from ..parsing.events import (
    ContentDelta,
    ReasoningDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from ..reply_rules import ResponseFormat, ToolChoice
from ..sampling_params import SamplingParams
from .answer import Answer, StreamEvent, Usage
from .async_llm import AsyncLLM
from .conversation import ChatOptions, Conversation
from .prompts import TextOrTokens
from .sampling import Sampling
from .sync_llm import LLM

__all__ = [
    "LLM",
    "Answer",
    "AsyncLLM",
    "ChatOptions",
    "ContentDelta",
    "Conversation",
    "EngineConfig",
    "Message",
    "ReasoningDelta",
    "ResponseFormat",
    "Sampling",
    "SamplingParams",
    "StreamEvent",
    "TextOrTokens",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallEnd",
    "ToolCallStart",
    "ToolChoice",
    "ToolSpec",
    "Usage",
]
