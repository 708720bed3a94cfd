"""A real model at temperature 1 writes what its schema asks for, whatever that is."""

from __future__ import annotations

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from engine_driver import EngineDriver, build
from json_schemas import varied_schemas

from pippin.core.engine.prompt_builder import PromptBuilder
from pippin.core.errors import DownloadError
from pippin.core.messages import TextPrompt
from pippin.core.models.loader import LoadedModel, load_model
from pippin.core.models.progress import NullProgress
from pippin.core.reply_rules import ReplyRules, ResponseFormat
from pippin.core.request import FinishReason
from pippin.core.sampling_params import SamplingParams


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    try:
        return load_model("demo", progress=NullProgress())
    except DownloadError as error:
        pytest.skip(f"the demo model cannot be fetched here: {error}")


def check(demo: LoadedModel, schemas: list[dict[str, Any]]) -> None:
    built = build(demo, max_num_seqs=32)
    prompts = PromptBuilder(
        built.tokenizer, max_model_len=built.max_model_len, vocab_size=demo.vocab_size
    )
    requests = [
        prompts.build(
            TextPrompt("JSON:\n"),
            SamplingParams(max_tokens=600, temperature=1.0, seed=index),
            request_id=str(index),
            rules=ReplyRules(response_format=ResponseFormat("json_schema", schema)),
        )
        for index, schema in enumerate(schemas)
    ]
    answers = EngineDriver(built.engine).run(requests)
    for index, schema in enumerate(schemas):
        answer = answers[str(index), 0]
        assert answer.finish_reason is FinishReason.STOP, (schema, answer)
        validator = jsonschema.Draft202012Validator(schema)
        faults = [fault.message for fault in validator.iter_errors(json.loads(answer.text))]
        assert not faults, (schema, answer.text)


def test_answers_follow_schemas_of_every_kind(demo: LoadedModel) -> None:
    check(demo, varied_schemas(25))


@pytest.mark.exactness
@pytest.mark.timeout(3600)
def test_answers_follow_200_schemas(demo: LoadedModel) -> None:
    check(demo, varied_schemas(200))
