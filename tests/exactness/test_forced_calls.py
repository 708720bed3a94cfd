"""A real model that must call calls, with arguments that follow the tool's schema."""

from __future__ import annotations

import json

import jsonschema  # type: ignore[import-untyped]
import pytest
from engine_driver import EngineDriver, build
from json_schemas import varied_schemas

from pippin.core.engine.prompt_builder import PromptBuilder
from pippin.core.engine.reply_dialect import ReplyDialect
from pippin.core.errors import DownloadError
from pippin.core.messages import ChatPrompt, Message, TextPart, ToolSpec
from pippin.core.models.loader import LoadedModel, load_model
from pippin.core.models.progress import NullProgress
from pippin.core.parsing.events import ContentDelta, ToolCallDelta, ToolCallStart
from pippin.core.reply_rules import ReplyRules, ToolChoice
from pippin.core.sampling_params import SamplingParams


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    try:
        return load_model("demo", progress=NullProgress())
    except DownloadError as error:
        pytest.skip(f"the demo model cannot be fetched here: {error}")


def check(demo: LoadedModel, count: int) -> None:
    built = build(demo, max_num_seqs=32)
    prompts = PromptBuilder(
        built.tokenizer,
        max_model_len=built.max_model_len,
        vocab_size=demo.vocab_size,
        dialect=ReplyDialect.of_model(built.tokenizer, demo.model_type),
    )
    objects = [schema for schema in varied_schemas(3 * count) if "properties" in schema]
    requests, schemas = [], objects[:count]
    for index, schema in enumerate(schemas):
        tools = (
            ToolSpec(name="take", parameters=schema, strict=index % 2 == 0),
            ToolSpec(name="leave", parameters={"type": "object", "properties": {}}),
        )
        named = ToolChoice("named", "take")
        request = prompts.build(
            ChatPrompt(messages=[Message(role="user", content=[TextPart("Hi!")])], tools=tools),
            SamplingParams(max_tokens=600, temperature=1.0, seed=index),
            request_id=str(index),
            rules=ReplyRules(tool_choice=named),
        )
        requests.append(request)
    answers = EngineDriver(built.engine).run(requests)
    for request, schema in zip(requests, schemas, strict=True):
        text = answers[request.request_id, 0].text
        parser = request.make_parser()
        events = [*parser.feed(text), *parser.close()]
        assert [event.name for event in events if isinstance(event, ToolCallStart)] == ["take"]
        assert not any(isinstance(event, ContentDelta) for event in events), text
        arguments = "".join(e.arguments for e in events if isinstance(e, ToolCallDelta))
        jsonschema.Draft202012Validator(schema).validate(json.loads(arguments))


def test_forced_calls_are_valid(demo: LoadedModel) -> None:
    check(demo, 3)


@pytest.mark.exactness
@pytest.mark.timeout(3600)
def test_100_forced_calls_are_valid(demo: LoadedModel) -> None:
    check(demo, 100)
