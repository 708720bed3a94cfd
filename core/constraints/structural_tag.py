"""Structural tags in their newer form: a tree of formats that describes all of an answer.

Free text ends where the text of the tag around it, or of what comes behind it, begins first.

Source: XGrammar's documentation, "Structural Tag Usage".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

_Format: TypeAlias = Mapping[str, Any]
# The text that ends a format, any one of them, which is written with it; none where the answer
# ends. Behind ``None`` comes something else.
_Ends: TypeAlias = tuple[str, ...] | None

# What must be there, and what may be, with the values that ask for nothing special.
_FIELDS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "const_string": (("value",), {}),
    "json_schema": (("json_schema",), {"style": "json", "any_order": False}),
    "regex": (("pattern",), {}),
    "grammar": (("grammar",), {}),
    "any_text": ((), {"excludes": [], "max_chars": None, "max_tokens": None}),
    "sequence": (("elements",), {}),
    "or": (("elements",), {}),
    "optional": (("content",), {}),
    "star": (("content",), {}),
    "plus": (("content",), {}),
    "repeat": (("content", "min", "max"), {}),
    "tag": (("begin", "content", "end"), {}),
    "triggered_tags": (
        ("triggers", "tags"),
        {"at_least_one": False, "stop_after_first": False, "excludes": []},
    ),
    "tags_with_separator": (
        ("tags", "separator"),
        {"at_least_one": False, "stop_after_first": False},
    ),
}
_UNSUPPORTED = (("json_schema", "style"), ("json_schema", "any_order"), ("any_text", "max_tokens"))
_COUNTS = {"optional": "?", "star": "*", "plus": "+"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What grammars are put together from: each gives a part of a rule.

    Attributes:
        text: Free text without some texts, of a limited length if one is given, up to and with an
            end if there is one.
        rule: Gives a rule a name.
    """

    literal: Callable[[str], str]
    json: Callable[[Mapping[str, Any]], str]
    regex: Callable[[str], str]
    grammar: Callable[[str], str]
    text: Callable[[str, Sequence[str], int | None], str]
    rule: Callable[[str], str]


class StructuralTag:
    """Writes formats as parts of a rule.

    Raises:
        ValueError: One is none, or is not supported; names its path.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def write(self, form: Any, path: str = "format", ends: _Ends = ()) -> str:
        """A format, up to and with one of `ends`."""
        fields = _fields(form, path)
        match fields["type"]:
            case "any_text":
                return self._text(fields["excludes"], fields["max_chars"], path, ends)
            case "sequence":
                return self._sequence(_list(fields, "elements", path), path, ends)
            case "or":
                elements = _list(fields, "elements", path)
                return self._any(
                    self.write(each, f"{path}.elements[{i}]", ends)
                    for i, each in enumerate(elements)
                )
            case "triggered_tags":
                return self._triggered_tags(fields, path, ends)
            case _:
                return f"{self._bounded(fields, path, ends)} {self._end(ends)}"

    def _bounded(self, fields: _Format, path: str, ends: _Ends) -> str:
        """A format that knows itself where it ends."""
        match kind := fields["type"]:
            case "const_string":
                return self._parts.literal(_text(fields, "value", path)) or '""'
            case "regex":
                return self._parts.regex(_text(fields, "pattern", path))
            case "grammar":
                return self._parts.grammar(_text(fields, "grammar", path))
            case "json_schema":
                schema = fields["json_schema"]
                if not isinstance(schema, Mapping):
                    raise ValueError(f"{path}.json_schema is not an object")
                return self._parts.json(schema)
            case "tag":
                return self._tag(fields, path, ends)
            case "tags_with_separator":
                return self._separated_tags(fields, path)
        count = _COUNTS.get(kind) or _range(fields, path)
        return f"({self.write(fields['content'], f'{path}.content', None)}){count}"

    def _tag(self, fields: _Format, path: str, ends: _Ends, *, written: str = "") -> str:
        """A tag, of which the beginning may be written already."""
        begin = self._parts.literal(_text(fields, "begin", path).removeprefix(written))
        own = fields["end"] if isinstance(fields["end"], list) else [fields["end"]]
        if not own or not all(isinstance(end, str) for end in own):
            raise ValueError(f"{path}.end is neither a text nor a list of texts")
        if all(own):
            return f"{begin} {self.write(fields['content'], f'{path}.content', tuple(own))}"
        # Free text without an end of its own goes on to the end of what is around it.
        inner = self.write(fields["content"], f"{path}.content", None if ends else ends)
        return f"{begin} {inner} {self._end(tuple(end for end in own if end))}"

    def _tags(self, fields: _Format, path: str) -> list[tuple[_Format, str]]:
        found: list[tuple[_Format, str]] = []
        for index, tag in enumerate(_list(fields, "tags", path)):
            place = f"{path}.tags[{index}]"
            # Among tags, their type goes without saying.
            known = _fields({"type": "tag", **tag} if isinstance(tag, Mapping) else tag, place)
            if known["type"] != "tag":
                raise ValueError(f"{place}.type is not 'tag'")
            found.append((known, place))
        return found

    def _separated_tags(self, fields: _Format, path: str) -> str:
        tag = self._any(self._tag(*each, None) for each in self._tags(fields, path))
        separator = self._parts.literal(_text(fields, "separator", path))
        more = "" if fields["stop_after_first"] else f"({separator} {tag})*"
        return f"({tag} {more})" + ("" if fields["at_least_one"] else "?")

    def _triggered_tags(self, fields: _Format, path: str, ends: _Ends) -> str:
        triggers, excludes = _list(fields, "triggers", path), fields["excludes"]
        first, later = [], []
        for tag, place in self._tags(fields, path):
            begin = _text(tag, "begin", place)
            trigger = next((t for t in triggers if t and begin.startswith(str(t))), None)
            if trigger is None:
                raise ValueError(f"no trigger in {path}.triggers begins {place}.begin")
            rest = self._parts.rule(self._tag(tag, place, None, written=trigger))
            first.append(f"{self._parts.literal(trigger)} {rest}")
            later.append(f"{self._parts.text(trigger, excludes, None)} {rest}")
        text = self._text(excludes, None, path, ends)
        if fields["stop_after_first"]:
            end = self._end(ends)
            tagged = f"{self._any(first if fields['at_least_one'] else later)} {end}"
            return tagged if fields["at_least_one"] else self._any([tagged, text])
        begun = self._any(first) if fields["at_least_one"] else ""
        return f"{begun} {self._any(later)}* {text}"

    def _text(self, excludes: Any, length: Any, path: str, ends: _Ends) -> str:
        if ends is None:
            raise ValueError(f"{path} is free text, which only a text or a tag's end can follow")
        if not isinstance(excludes, list) or not all(isinstance(e, str) and e for e in excludes):
            raise ValueError(f"{path}.excludes is not a list of texts")
        if length is not None and (not isinstance(length, int) or length < 0):
            raise ValueError(f"{path}.max_chars is not a number of characters")
        # That an end is excluded goes without saying.
        kept = [each for each in excludes if each not in ends]
        return self._any(self._parts.text(end, kept, length) for end in ends or ("",))

    def _sequence(self, elements: Sequence[Any], path: str, ends: _Ends) -> str:
        written, begun = [], ""
        for index, each in enumerate(elements):
            place = f"{path}.elements[{index}]"
            fields = dict(_fields(each, place))
            if begun:
                key = "value" if fields["type"] == "const_string" else "begin"
                fields[key] = fields[key][len(begun) :]
            begun, following = "", ends
            if index + 1 < len(elements):
                following = None
                if fields["type"] in ("any_text", "triggered_tags"):
                    begun = _beginning(elements[index + 1])
                    following = (begun,) if begun else None
            written.append(self.write(fields, place, following))
        return " ".join(written) or self._end(ends)

    def _end(self, ends: _Ends) -> str:
        return self._any(map(self._parts.literal, ends)) if ends else ""

    def _any(self, options: Any) -> str:
        return self._parts.rule(" | ".join(option or '""' for option in options))


def _beginning(form: Any) -> str:
    """The text that a format must begin with; empty where that is not known."""
    kind = form.get("type") if isinstance(form, Mapping) else None
    key = {"const_string": "value", "tag": "begin"}.get(str(kind), "")
    text = form.get(key) if key else None
    return text if isinstance(text, str) else ""


def _fields(form: Any, path: str) -> dict[str, Any]:
    if not isinstance(form, Mapping):
        raise ValueError(f"{path} is not an object")
    kind = form.get("type")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise ValueError(f"{path}.type is {kind!r}; supported are {', '.join(_FIELDS)}")
    required, optional = _FIELDS[kind]
    for key in required:
        if key not in form:
            raise ValueError(f"{path}.{key} is missing")
    for key, value in form.items():
        is_known = key in ("type", *required, *optional)
        if not is_known or ((kind, key) in _UNSUPPORTED and value != optional[key]):
            raise ValueError(f"{path}.{key} is not supported" + (f": {value!r}" * is_known))
    return {**optional, **form}


def _text(fields: _Format, key: str, path: str) -> str:
    if not isinstance(fields[key], str):
        raise ValueError(f"{path}.{key} is not a text")
    return str(fields[key])


def _list(fields: _Format, key: str, path: str) -> Sequence[Any]:
    if not isinstance(fields[key], list) or not fields[key]:
        raise ValueError(f"{path}.{key} is not a list with something in it")
    found: Sequence[Any] = fields[key]
    return found


def _range(fields: _Format, path: str) -> str:
    least, most = fields["min"], fields["max"]
    for key in ("min", "max"):
        if not isinstance(fields[key], int) or isinstance(fields[key], bool):
            raise ValueError(f"{path}.{key} is not a number")
    if least < 0 or (most != -1 and most < max(least, 1)):
        raise ValueError(f"{path}.max is less than {path}.min, or both are nothing")
    return f"{{{least},{'' if most == -1 else most}}}"
