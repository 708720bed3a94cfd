"""Base of all wire models, and the way from a raw body to one.

Nothing is accepted and ignored: a field that no schema names is refused by its name, and so is a
field that the API knows but this server cannot honour, unless its value asks for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError, from_json

from pippin.core.errors import InvalidRequestError

# What a caller named may come back in an error message, but not at any length.
_MAX_NAME_CHARS = 100


class WireModel(BaseModel):
    """Unknown fields are errors; types are strict, but an integer is a fine number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


WireModelT = TypeVar("WireModelT", bound=WireModel)


@dataclass(frozen=True, slots=True)
class _Only(AfterValidator):
    harmless: tuple[object, ...] = ()

    def __get_pydantic_json_schema__(self, *_: object) -> dict[str, Any]:
        return {"enum": [None, *self.harmless]}


def only(*harmless: object) -> AfterValidator:
    """Marks a field that cannot be honoured: every value but null and ``harmless`` is refused."""

    def check(value: object) -> object:
        if value is None or any(type(value) is type(it) and value == it for it in harmless):
            return value
        raise PydanticCustomError("unsupported_value", "this server cannot honour it")

    return _Only(check, harmless)


def parse_body(model: type[WireModelT], raw: bytes) -> WireModelT:
    """Read a request body.

    Raises:
        InvalidRequestError: Not JSON, or not of this shape; ``param`` is the dotted field name.
    """
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise _to_invalid_request(error, raw) from None


def _to_invalid_request(error: ValidationError, raw: bytes) -> InvalidRequestError:
    details = error.errors(include_url=False, include_input=False)
    if not details[0]["loc"]:
        if details[0]["type"] == "json_invalid":
            return InvalidRequestError(f"Body: {details[0]['msg']}.", code="invalid_json")
        return InvalidRequestError("The body must be a JSON object.", code="invalid_type")
    body = from_json(raw)
    fields = [_field_path(detail, body) for detail in details]
    # A field with several possible types has one error for each. Those deepest inside the first
    # field come from the type that fitted best.
    first = [field for field in fields if field[0] == fields[0][0]]
    best = max(first, key=len)
    return _describe(
        [detail for detail, field in zip(details, fields, strict=True) if field == best],
        ".".join(best)[:_MAX_NAME_CHARS],
    )


def _field_path(detail: ErrorDetails, body: Any) -> list[str]:
    """The part of pydantic's location that a caller can find in the body.

    The rest are names of union members and validators.
    """
    path: list[str] = []
    value = body
    for position, step in enumerate(detail["loc"]):
        is_missing = detail["type"] == "missing" and position == len(detail["loc"]) - 1
        if is_missing or _holds(value, step):
            path.append(str(step))
            value = None if is_missing else value[step]
    if detail["type"].startswith("union_tag_"):
        path.append(detail["ctx"]["discriminator"].strip("'"))
    return path or [str(detail["loc"][0])]


def _holds(value: object, step: int | str) -> bool:
    if isinstance(value, Mapping):
        return step in value
    return isinstance(value, list) and isinstance(step, int) and step < len(value)


def _describe(details: Sequence[ErrorDetails], param: str) -> InvalidRequestError:
    """One error for all that is wrong with one field."""
    kind = details[0]["type"]
    if kind == "extra_forbidden":
        message, code = f"Unknown parameter: '{param}'.", "unknown_parameter"
    elif kind in ("missing", "union_tag_not_found"):
        message, code = f"Missing required parameter: '{param}'.", "missing_required_parameter"
    elif kind == "unsupported_value":
        message, code = f"Unsupported value for '{param}': {details[0]['msg']}.", kind
    elif kind == "union_tag_invalid":
        expected = details[0]["ctx"]["expected_tags"]
        message, code = f"Invalid value for '{param}': expected one of {expected}.", "invalid_value"
    else:
        code = "invalid_type" if kind.endswith("_type") else "invalid_value"
        reasons = dict.fromkeys(_reason(detail) for detail in details)
        message = f"Invalid value for '{param}': {', or '.join(reasons)}."
    return InvalidRequestError(message, param=param, code=code)


def _reason(detail: ErrorDetails) -> str:
    # JSON has arrays only; that we keep them as tuples is nobody's business.
    text = detail["msg"].replace("Tuple", "array").replace("tuple", "array")
    return text[0].lower() + text[1:]
