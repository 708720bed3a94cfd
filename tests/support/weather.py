"""What outside clients are tried with: questions, a tool, and a model that plays along."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from scripted_model import write_scripted_model

QUESTION = "How is the weather?"
SCHEMA_QUESTION = "Which city, as JSON?"
ANSWER = "It is sunny."
THOUGHT = "<think>\nI must look.\n</think>\n\n"
READ_FILE = "cat weather.txt"
# What is said to tools that clients bring, by their names.
CALLS = {
    "Bash": {"command": READ_FILE, "description": "Reads the weather"},  # Claude Code
    "bash": {"command": READ_FILE, "description": "Reads the weather"},  # opencode
    "exec_command": {"cmd": READ_FILE},  # Codex
    "multi_agent_v1__close_agent": {"target": "nobody"},  # Codex, in a namespace
}
DEFERRED_TOOL = "NotebookEdit"  # one that Claude Code keeps back until it is searched for
SEARCH = {"query": f"select:{DEFERRED_TOOL}", "max_results": 1}
TOOL_RESULT = "sunny, 31 degrees"

# ChatML that shows tools by name and little of long messages: the prompts of command lines have
# some 100,000 characters, and a token of this model's is a byte.
SHORT_CHATML = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}\n{{ tool.function.name }}"
    "{% endfor %}\n</tools>\nAnswer with <tool_call>\n"
    '{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n{% endif %}'
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content[-200:] }}"
    "{% for call in message.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _call(name: str, arguments: Mapping[str, object]) -> str:
    call = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{call}\n</tool_call>"


def write_weather_model(folder: Path) -> Path:
    """A model that reasons, calls a tool when asked, and answers when it has the result."""
    scripts = {
        "anything else": "Hello.",
        TOOL_RESULT: ANSWER,
        "invalid agent id nobody": ANSWER,
        QUESTION: f"{THOUGHT}Wait. {_call('look', {'city': 'Rome'})}",
        SCHEMA_QUESTION: '{"city": "Rome"}',
        # LiteLLM's for structured answers on Messages. It is forced, and so without a thought.
        question_for("json_tool_call"): _call("json_tool_call", {"city": "Rome"}),
        **{question_for(name): THOUGHT + _call(name, values) for name, values in CALLS.items()},
        # Behind its question, Claude Code puts a system message with this in it.
        "the model claude-scripted": THOUGHT + _call("Bash", CALLS["Bash"]),
        "the model claude-searching": _call("ToolSearch", SEARCH),
        f"The tool {DEFERRED_TOOL} can be called now.": ANSWER,
    }
    return write_scripted_model(
        folder,
        scripts,
        chat_template=SHORT_CHATML,
        tokens=("<tool_call>", "</tool_call>"),
        special_tokens=("<think>", "</think>"),
    )


def question_for(tool: str) -> str:
    """What makes the model call a tool that a client brings."""
    return f"Ask {tool} for the weather."


class City(BaseModel):
    """A structured answer."""

    model_config = ConfigDict(extra="forbid")

    city: str


class Weather:
    """A tool that notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

        def look(city: str) -> str:
            """Tell the weather of a city."""
            self.asked.append(city)
            return TOOL_RESULT

        self.look: Callable[..., str] = look

    def assert_round_trip(self, answer: str) -> None:
        """The tool ran once, as the model asked, and the model saw what it said."""
        assert (self.asked, answer.strip()) == (["Rome"], ANSWER)
