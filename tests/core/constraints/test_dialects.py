"""Whatever a dialect's grammar lets through, its parser reads as calls that follow the schema."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import byte_tokenizer
import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest

from pippin.core.constraints.compiler import ConstraintCompiler
from pippin.core.messages import ToolSpec
from pippin.core.parsing.detect import make_parser
from pippin.core.parsing.events import ContentDelta, ToolCallDelta, ToolCallStart
from pippin.core.parsing.tool_grammars import TOOL_GRAMMARS
from pippin.core.reply_rules import ReplyRules, ToolChoice
from pippin.core.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(byte_tokenizer.make_byte_tokenizer())
(EOS_ID,) = TOKENIZER.eos_token_ids
SCHEMA = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"type": "string", "enum": ["fish", "fowl"]},
        "fresh": {"type": "boolean"},
        "sizes": {"type": "array", "items": {"enum": [1, "a"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["count", "kind"],
    "additionalProperties": False,
}
# What dialects without quotes find hard.
HARD_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": "^[A-D]{2}$"},
        "tail": {"type": "string", "pattern": "x$", "maxLength": 5},
        "short": {"type": "string", "minLength": 1, "maxLength": 3},
        "where": {"$ref": "#/$defs/place"},
        "which": {"$ref": "#/$defs/digits"},
        "mixed": {"enum": [1, "a", None, "two\nlines"]},
        "twins": {"enum": [1, "1"]},
        "fixed": {"const": "a/b"},
        "also": {"type": "string", "const": "7"},
        "maybe": {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "null"}]},
    },
    "additionalProperties": False,
    "$defs": {
        "place": {"$ref": "#/$defs/towns"},
        "towns": {"type": "string", "enum": ["Rome", "Bath"]},
        "digits": {"type": "string", "pattern": "^[0-9]{1,3}$"},
    },
}
HARD_SCHEMA["required"] = list(HARD_SCHEMA["properties"])
OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": False}
# What dialects that write values inside of values find hard.
NESTED_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "place": {
            "properties": {
                "item": {"type": "string", "maxLength": 2},
                "odd name": {"type": "boolean"},
                "at": {"type": ["integer", "null"], "minimum": -9, "maximum": 9},
            },
            "required": ["item"],
        }
        | OBJECT,
        "only": {"properties": {"item": {"const": "7"}}, "required": ["item"]} | OBJECT,
        "none": {"properties": {"a": {"const": 1}}} | OBJECT,
        "names": {"type": "array", "items": {"enum": ["a", "7"]}, "maxItems": 2},
        "rows": {
            "type": "array",
            "items": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 1},
            "minItems": 2,
            "maxItems": 3,
        },
        "some": {"anyOf": [{"$ref": "#/$defs/leaf"}, {"type": "null"}]},
        "tree": {"$ref": "#/$defs/tree"},
        "few": {"patternProperties": {"^x{1,3}$": {"type": "null"}}} | OBJECT,
    },
    "additionalProperties": False,
    "$defs": {
        "leaf": {"type": "string", "pattern": "^[0-9]$"},
        "tree": {"properties": {"kid": {"$ref": "#/$defs/tree"}}} | OBJECT,
    },
}
NESTED_SCHEMA["required"] = ["only", "names", "rows", "some"]
BLANKS = {*b" \n", 258}


@pytest.mark.parametrize("mode", ["named", "required"])
@pytest.mark.parametrize(
    "schema", [SCHEMA, HARD_SCHEMA, NESTED_SCHEMA], ids=["plain", "hard", "nested"]
)
@pytest.mark.parametrize("dialect", TOOL_GRAMMARS)
def test_what_may_be_written_is_read(dialect: str, mode: str, schema: Mapping[str, Any]) -> None:
    tools = [ToolSpec(name=name, parameters=schema, strict=True) for name in ("catch", "cook")]
    choice = ToolChoice("named", "cook") if mode == "named" else ToolChoice("required")
    compiler = ConstraintCompiler(TOKENIZER, 269, calls=TOOL_GRAMMARS[dialect])
    factory = compiler.compile(
        ReplyRules(tool_choice=choice, parallel_tool_calls=mode == "named"), tools
    )
    assert factory is not None
    for seed in range(3):
        rng, constraint, token_ids = random.Random(seed), factory(), list[int]()
        while EOS_ID not in token_ids:
            row = np.full(9, 0xFFFFFFFF, dtype=np.uint32)
            constraint.fill(row)
            bits = np.unpackbits(row.view(np.uint8), bitorder="little")[:269]
            options = {int(token_id) for token_id in np.flatnonzero(bits)}
            # Blanks would be most of it.
            token_ids.append(rng.choice(sorted(options - BLANKS or options)))
            constraint.accept(token_ids[-1])
        parser = make_parser(dialect, None, tools)
        text = TOKENIZER.decode(token_ids[:-1], skip_special_tokens=False)
        events = [*parser.feed(text), *parser.close()]
        (name,) = [event.name for event in events if isinstance(event, ToolCallStart)]
        assert name == "cook" if mode == "named" else name in ("catch", "cook")
        assert not [e for e in events if isinstance(e, ContentDelta) and e.text.strip()]
        arguments = "".join(e.arguments for e in events if isinstance(e, ToolCallDelta))
        jsonschema.validate(json.loads(arguments), schema)
