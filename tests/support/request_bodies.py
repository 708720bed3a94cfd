"""A valid body, with much in it, for every route that takes one, and for those that take none."""

from __future__ import annotations

from typing import Any

SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "enum": ["x", None]}}}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
CHAT_TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": "x"}'}}
SAMPLING = {
    "temperature": 0.5,
    "top_p": 0.5,
    "seed": 1,
    "stop": ["x"],
    "logit_bias": {"1": 1},
    "n": 1,
    "stream": False,
    "stream_options": None,
    "top_k": 1,
    "min_tokens": 0,
    "stop_token_ids": [1],
    "cache_salt": "s",
}
CHAT = {
    **SAMPLING,
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "x"}], "name": "u"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "r"},
        {"role": "tool", "content": "y", "tool_call_id": "call_1"},
    ],
    "max_tokens": 4,
    "logprobs": True,
    "top_logprobs": 2,
    "tools": [CHAT_TOOL],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    "metadata": {"a": "b"},
    "chat_template_kwargs": {"a": 1},
}
MESSAGES = {
    "model": "tiny",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": None}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "x"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "tool_reference", "tool_name": "g"}],
                    "is_error": True,
                },
                {
                    "type": "document",
                    "source": {"type": "text", "media_type": "text/plain", "data": "d"},
                },
            ],
        },
    ],
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral", "ttl": "5m"}}],
    "tools": [
        {"name": "f", "description": "d", "input_schema": SCHEMA, "strict": True},
        {"name": "g", "input_schema": SCHEMA, "defer_loading": True},
    ],
    "tool_choice": {"type": "tool", "name": "f"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
}
ITEMS = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "y"},
    {"type": "custom_tool_call", "call_id": "k", "namespace": "n", "name": "c", "input": "a"},
    {"type": "custom_tool_call_output", "call_id": "k", "output": "y"},
    {"role": "assistant", "content": "a", "id": "msg_1_2"},
]
OLLAMA = {
    "model": "tiny",
    "stream": True,
    "format": SCHEMA,
    "think": "low",
    "keep_alive": "5m",
    "options": {"num_ctx": 10, "num_predict": 3, "temperature": 1, "stop": ["x"], "seed": -1},
}
# ``None`` where a body is not looked at.
BODIES: dict[str, dict[str, Any] | None] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {
        **SAMPLING,
        "model": "tiny",
        "prompt": ["x", "y"],
        "echo": True,
        "logprobs": 2,
        "max_tokens": 3,
    },
    "/v1/messages": {**MESSAGES, "max_tokens": 5, "stop_sequences": ["x"], "stream": True},
    "/v1/messages/count_tokens": MESSAGES,
    "/v1/requests/{request_id}/cancel": None,
    "/v1/responses": {
        **SAMPLING,
        "model": "tiny",
        "input": ITEMS,
        "instructions": "i",
        "include": ["message.output_text.logprobs"],
        "max_output_tokens": 5,
        "metadata": {"a": "b"},
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
        "tools": [
            {"type": "function", **FUNCTION},
            {
                "type": "namespace",
                "name": "n",
                "description": "d",
                "tools": [
                    {
                        "type": "custom",
                        "name": "c",
                        "format": {"type": "grammar", "syntax": "regex", "definition": "a"},
                    }
                ],
            },
            {"type": "web_search"},
        ],
        "tool_choice": {"type": "function", "name": "f"},
        "store": True,
        "stream": True,
        "truncation": "auto",
    },
    "/v1/responses/input_tokens": {
        "model": "tiny",
        "input": ITEMS,
        "instructions": "i",
        "tools": [{"type": "function", **FUNCTION}],
        "truncation": "auto",
    },
    "/v1/responses/compact": None,
    "/v1/responses/{response_id}/cancel": None,
    "/v1/conversations": {"items": ITEMS, "metadata": {"a": "b"}},
    "/v1/conversations/{conversation_id}": {"metadata": {"a": "b"}},
    "/v1/conversations/{conversation_id}/items": {"items": ITEMS},
    "/tokenize": {
        "messages": CHAT["messages"],
        "tools": [CHAT_TOOL],
        "return_token_strs": True,
        "chat_template_kwargs": {"a": 1},
    },
    "/detokenize": {"tokens": [1, 2]},
    "/apply-template": CHAT,
    "/api/chat": {
        **OLLAMA,
        "messages": [
            {"role": "user", "content": "x"},
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "f", "arguments": {"a": "x"}}}],
                "thinking": "t",
            },
            {"role": "tool", "content": "y", "tool_name": "f"},
        ],
        "tools": [CHAT_TOOL],
    },
    "/api/generate": {**OLLAMA, "prompt": "x", "system": "s"},
    "/api/show": {"model": "tiny", "verbose": True},
    "/api/embed": {"model": "tiny", "input": ["x"]},
    "/api/embeddings": {"model": "tiny", "prompt": "x"},
}
