"""Small JSON schemas, as varied as those that people write.

None allows endless answers: at temperature 1 a small model may repeat digits, or itself, for ever.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]

_WORDS = ("id", "name", "größe", "is open", "tags", "a/b", 'quo"te', "$price", "x")
_PATTERNS = (r"^[A-Z]{2}[0-9]{3}$", r"^(red|green)+$", r"\d-\d", r"^[^@ ]{1,5}@[a-z]{2}\.de$", "é?")
_FORMATS = ("date", "time", "uuid", "ipv4", "email")


def varied_schemas(count: int, *, seed: int = 0) -> list[Schema]:
    """Schemas of objects and, now and then, of anything else; the first ones are the same."""
    rng = random.Random(seed)
    return [_top(rng, index) for index in range(count)]


def _top(rng: random.Random, index: int) -> Schema:
    # Each kind has its turn as the only property, then they mix.
    if index < 2 * len(_LEAVES):
        return _object({"value": _LEAVES[index % len(_LEAVES)](rng)})
    if index % 7 == 0:
        return _referring(rng)
    if index % 7 == 1:
        return {"$ref": "#/$defs/part", "$defs": {"part": _any(rng, 2)}}
    return _any(rng, 2) if index % 7 == 2 else _nested_object(rng, 2)


def _any(rng: random.Random, depth: int) -> Schema:
    if depth == 0:
        return rng.choice(_LEAVES)(rng)
    return rng.choice([_nested_object, _array, _tuple, _either, _optional])(rng, depth)


def _object(properties: dict[str, Schema], **more: Any) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
        **more,
    }


def _nested_object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(_WORDS, rng.randint(1, 3))
    return _object({name: _any(rng, depth - 1) for name in names})


def _optional(rng: random.Random, depth: int) -> Schema:
    schema = _nested_object(rng, depth)
    return {**schema, "required": schema["required"][1:]}


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(0, 2)
    return {
        "type": "array",
        "items": _any(rng, depth - 1),
        "minItems": least,
        "maxItems": least + rng.randint(0, 2),
    }


def _tuple(rng: random.Random, depth: int) -> Schema:
    items = [_any(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _either(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(rng, depth - 1), {"type": "null"}, _any(rng, depth - 1)]}


def _referring(rng: random.Random) -> Schema:
    leaf, pair = {"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/pair"}
    pairs = {"type": "array", "items": pair, "minItems": 1, "maxItems": 2}
    defs = {"pair": _object({"first": leaf, "second": leaf}), "leaf": _any(rng, 0)}
    return _object({"pairs": pairs, "last": leaf}, **{"$defs": defs})


def _bounded(rng: random.Random) -> Schema:
    low = rng.randint(-300, 300)
    high = low + rng.choice([0, 3, 40, 5000])
    return {"type": rng.choice(["integer", "number"]), "minimum": low, "maximum": high}


def _open_bounded(rng: random.Random) -> Schema:
    low = rng.randint(-20, 20)
    return {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + 9}


_LEAVES: tuple[Callable[[random.Random], Schema], ...] = (
    _bounded,
    _open_bounded,
    lambda rng: {"type": "boolean"},
    lambda rng: {"type": ["string", "null"], "maxLength": 6},
    lambda rng: {"type": "string", "minLength": 3, "maxLength": rng.randint(3, 12)},
    lambda rng: {"type": "string", "pattern": rng.choice(_PATTERNS), "maxLength": 30},
    lambda rng: {"type": "string", "format": rng.choice(_FORMATS), "maxLength": 40},
    lambda rng: {"enum": rng.sample(["a", "ä\n", 1, -2.5, None, True, [1], {"k": "v"}, ""], 3)},
    lambda rng: {"const": rng.choice(["fix", 7, None, [1, "2"]])},
    lambda rng: {"type": "integer", "multipleOf": rng.choice([3, 5]), "minimum": 0, "maximum": 90},
    lambda rng: {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 8}]},
)
