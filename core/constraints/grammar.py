"""Rules for an answer to the text of a llguidance grammar. Pure text; compiles nothing.

Grammars are in llguidance's dialect of Lark. Markers that are tokens of their own are named by id:
free text never holds such a token, so a marker cannot be spelled where it is not allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llguidance.gbnf_to_lark import any_to_lark

from ..errors import InvalidRequestError, UnsupportedFeatureError
from ..messages import ToolSpec
from ..reply_rules import ReplyRules, ResponseFormat
from .structural_tag import Parts, StructuralTag
from .text_lengths import TextLengths
from .tool_grammar import (
    Either,
    Items,
    Json,
    Maybe,
    Members,
    Pattern,
    Piece,
    TextUntil,
    ToolGrammar,
)

# Between JSON's tokens: what people and models write, but no endless run of blanks, which a small
# model falls into where the grammar holds it back from what it wanted to write.
_JSON_BLANKS = r" |\n {0,40}"
_ANY_TEXT = "/(?s:.*)/"
# A character of a regular expression, with the backslash before it.
_ONE = re.compile(r"(?s:\\?.)")


class GrammarWriter:
    """Writes one grammar.

    Args:
        marker_ids: Text and id of tokens that are no part of text.
        end_ids: Those of them that end an answer.
        accepts_schema: Whether llguidance can follow a JSON schema.
        content_begin: What stands before all that is said.
    """

    def __init__(
        self,
        marker_ids: Mapping[str, int],
        end_ids: frozenset[int],
        accepts_schema: Callable[[str], bool],
        content_begin: str = "",
    ) -> None:
        self._marker_ids = marker_ids
        self._end_ids = end_ids
        self._accepts_schema = accepts_schema
        self._content_begin = content_begin
        longest_first = sorted(marker_ids, key=len, reverse=True)
        self._markers = re.compile("(" + "|".join(map(re.escape, longest_first or ["(?!)"])) + ")")
        self._lengths = TextLengths()
        self._rules: list[str] = []
        self._grammars: list[dict[str, str]] = []

    def write(self, rules: ReplyRules, tools: Sequence[ToolSpec], calls: ToolGrammar | None) -> str:
        """The grammar of an answer that `needs_grammar`.

        Raises:
            InvalidRequestError: A rule asks for what cannot be.
        """
        choice, start = rules.tool_choice, None
        if choice.mode in ("required", "named"):
            start = self._forced_calls(rules, tools, calls)
        else:
            if rules.response_format is not None:
                start = self._said(self._content(rules.response_format))
            if choice.mode == "auto" and tools and calls is not None:
                start = self._free_calls(rules, tools, calls, start)
            elif _binds_calls(rules, tools):
                is_strict = any(tool.strict for tool in tools)
                raise _unknown_calls("tools" if is_strict else "parallel_tool_calls")
        main = "\n".join([f"start: {start}", *self._rules])
        return json.dumps({"grammars": [{"lark_grammar": main}, *self._grammars]})

    def _said(self, content: str) -> str:
        return f"{self._literal(self._content_begin)} {self._rule(content)}"

    def _content(self, form: ResponseFormat) -> str:
        value = form.value
        match form.kind:
            case "json_object":
                return self._json({"type": "object"})
            case "json_schema" if isinstance(value, Mapping):
                return self._json(value)
            case "regex" if isinstance(value, str):
                return self._regex(value)
            case "choice" if isinstance(value, Sequence) and value and not isinstance(value, str):
                return _any_of(self._quote(_text(item)) for item in value)
            case "grammar" if isinstance(value, str):
                return self._grammar(value)
            case "structural_tag":
                tag = json.loads(value) if isinstance(value, str) else value
                if isinstance(tag, Mapping):
                    return self._structural_tag(tag)
        raise ValueError("its value has the wrong type")

    def _forced_calls(
        self, rules: ReplyRules, tools: Sequence[ToolSpec], calls: ToolGrammar | None
    ) -> str:
        if calls is None:
            raise _unknown_calls("tool_choice")
        choice = rules.tool_choice
        chosen = [tool for tool in tools if choice.mode == "required" or tool.name == choice.name]
        if not chosen:
            raise InvalidRequestError("There is no such tool to call.", param="tool_choice")
        many = rules.parallel_tool_calls and choice.mode == "required"
        return self._group(chosen, calls, many=many)

    def _free_calls(
        self, rules: ReplyRules, tools: Sequence[ToolSpec], calls: ToolGrammar, content: str | None
    ) -> str:
        many = rules.parallel_tool_calls
        if self._content_begin and content is None:
            content = self._said(_ANY_TEXT)
            if calls.plain:
                content = self._said_between(tools, calls, many=many)
        if content is not None:
            return f"{content} | {self._group(tools, calls, many=many)}"
        if calls.trigger:
            rest = self._group(tools, calls, many=many, without=calls.trigger)
            text, ended = self._rule(_ANY_TEXT), ""
            if calls.text_end in self._marker_ids and (end := self._literal(calls.text_end)):
                ended, text = f"({text} {end})?", f"{text} ({end})?"
            group = self._rule(f"{ended} {self._free_until(calls.trigger)} {rest}")
            return f"{group}* {text}" if many else f"{group} | {text}"
        first = {(calls.begin or _head(calls.call(tool)))[:1] for tool in tools}
        other = f"/[^{re.escape(''.join(sorted(first)))}](?s:.*)/"
        return f'"" | {other} | {self._group(tools, calls, many=many)}'

    def _group(
        self, tools: Sequence[ToolSpec], calls: ToolGrammar, *, many: bool, without: str = ""
    ) -> str:
        """``begin call (between call)* end``, from behind the trigger if there was one."""
        parts = [self._literal(calls.begin.removeprefix(without))]
        parts.append(self._one_of(tools, calls, "" if calls.begin else without))
        if many:
            parts.append(f"({self._literal(calls.between)} {self._one_of(tools, calls, '')})*")
        parts.append(self._literal(calls.end))
        return self._rule(" ".join(part for part in parts if part))

    def _said_between(self, tools: Sequence[ToolSpec], calls: ToolGrammar, *, many: bool) -> str:
        """Text that calls may follow, where both begin with a recipient."""
        text = self._literal(self._content_begin)
        call = self._one_of(tools, calls, "")
        more = f"({self._literal(calls.between)} {call})*" if many else ""
        called = f"{text} {self._free_until(calls.between)} {call} {more}"
        return f"{self._rule(called)} | {text} {self._rule(_ANY_TEXT)}"

    def _one_of(self, tools: Sequence[ToolSpec], calls: ToolGrammar, without: str) -> str:
        return self._rule(_any_of([self._call(tool, calls, without) for tool in tools]))

    def _call(self, tool: ToolSpec, calls: ToolGrammar, without: str) -> str:
        schema: Mapping[str, Any] = {"type": "object", **tool.parameters}
        if tool.strict:
            self._lengths.check(schema, f" of the tool {tool.name!r}")
        else:
            schema = self._lengths.fit(schema)
        if not tool.strict and not self._accepts_schema(_guided(schema, lenient=True)):
            schema = {"type": "object"}
        pieces = list(calls.call(ToolSpec(name=tool.name, parameters=schema, strict=tool.strict)))
        if without:
            assert _head(pieces).startswith(without), "a trigger that calls do not begin with"
            pieces[0] = _head(pieces)[len(without) :]
        return self._rule(self._pieces(pieces, lenient=not tool.strict))

    def _pieces(self, pieces: Sequence[Piece], *, lenient: bool) -> str:
        return " ".join(self._piece(piece, lenient=lenient) for piece in pieces) or '""'

    def _piece(self, piece: Piece, *, lenient: bool) -> str:
        match piece:
            case str():
                return self._literal(piece)
            case Json(schema):
                return self._json(schema, lenient=lenient)
            case TextUntil(end, patterns):
                return self._text_until(end, patterns) if patterns else self._free_until(end)
            case Pattern(regex):
                return self._regex(regex)
            case Maybe(pieces):
                return f"({self._pieces(pieces, lenient=lenient)})?"
            case Either(options):
                return self._rule(_any_of(self._pieces(each, lenient=lenient) for each in options))
            case Members(rows, between):
                return self._members(rows, self._literal(between), lenient=lenient)
            case Items(pieces):
                return self._items(self._rule(self._pieces(pieces, lenient=lenient)), piece)

    def _members(
        self, rows: Sequence[tuple[Sequence[Piece], bool]], between: str, *, lenient: bool
    ) -> str:
        """Two rules a row: for the rest from there, behind another row and as the first of all."""
        behind = first = '""'
        for pieces, is_required in reversed(rows):
            row = self._rule(self._pieces(pieces, lenient=lenient))
            ways = [f"{between} {row} {behind}", f"{row} {behind}"]
            if not is_required:
                ways = [f"{way} | {rest}" for way, rest in zip(ways, (behind, first), strict=True)]
            behind, first = map(self._rule, ways)
        return first

    def _items(self, item: str, items: Items) -> str:
        if items.most == 0:
            return '""'
        more, most = "", "" if items.most is None else items.most - 1
        if most != 0:
            more = f"({self._literal(items.between)} {item}){{{max(items.least - 1, 0)},{most}}}"
        return f"({item} {more})" + ("" if items.least else "?")

    def _structural_tag(self, tag: Mapping[str, Any]) -> str:
        """All of an answer, as ``{"format"}`` or as text with ``{"structures", "triggers"}``."""
        if "format" in tag:
            parts = Parts(
                literal=self._literal,
                json=self._json,
                regex=self._regex,
                grammar=self._grammar,
                text=self._free_text,
                rule=self._rule,
            )
            return StructuralTag(parts).write(tag["format"])
        options = []
        for structure in tag["structures"]:
            begin, end = _text(structure["begin"]), _text(structure.get("end", ""))
            trigger = next((t for t in tag["triggers"] if t and begin.startswith(t)), None)
            if trigger is None:
                raise ValueError(f"no trigger begins the structure that begins with {begin!r}")
            body = self._json(structure.get("schema", {}))
            rest = f"{self._literal(begin[len(trigger) :])} {body} {self._literal(end)}"
            options.append(self._rule(f"{self._free_until(trigger)} {rest}"))
        if not options:
            raise ValueError("there are no structures")
        return f"({_any_of(options)})* {self._rule(_ANY_TEXT)}"

    def _free_text(self, end: str, excludes: Sequence[str], length: int | None) -> str:
        """Any text of any length, without some texts; up to and with the first ``end``, if any."""
        parts = [_slashed(_without(text)) for text in excludes if not self._markers.search(text)]
        if length is not None:
            self._lengths.check({"maxLength": length}, " (max_chars)")
            parts.append(f"/(?s:.{{0,{length}}})/")
        if not parts:
            return self._free_until(end) if end else self._rule(_ANY_TEXT)
        body = f"B{len(self._rules)}"
        self._rules.append(f"{body}: {' & '.join(parts)}")
        found = self._markers.search(end)
        if end and found is None:
            return self._rule(body, f"[suffix={self._quote(end)}]")
        return f"{body} {self._literal(end[found.start() :]) if found else ''}"

    def _free_until(self, end: str) -> str:
        """Any text up to and with the first ``end``."""
        found = self._markers.search(end)
        if found is None:
            return self._rule(_ANY_TEXT, f"[suffix={self._quote(end)}]")
        # A marker is no text: what stands before it cannot be told from free text, nor need it be.
        return f"{self._rule(_ANY_TEXT)} {self._literal(end[found.start() :])}"

    def _text_until(self, end: str, patterns: Sequence[str]) -> str:
        """Text that matches, up to and with the first ``end``."""
        found = self._markers.search(end)
        parts = [_slashed(f"(?:{pattern})") for pattern in patterns]
        if found is None:
            parts.append(_slashed(_without(end.strip())))
        plain = _slashed(re.escape(end if found is None else end[: found.start()]))
        # All of it is one token of the grammar: as two, the first would not leave room for the end.
        body, whole = f"B{len(self._rules)}", f"T{len(self._rules)}"
        self._rules += [f"{body}: {' & '.join(parts)}", f"{whole}: {body} {plain}"]
        return whole if found is None else f"{whole} {self._literal(end[found.start() :])}"

    def _literal(self, text: str) -> str:
        """Text with markers; those that end an answer are not drawn as part of it."""
        parts = []
        for part in self._markers.split(text):
            if (token_id := self._marker_ids.get(part)) is None:
                parts += [self._quote(part)] if part else []
            elif token_id not in self._end_ids:
                parts.append(f"<[{token_id}]>")
        return " ".join(parts)

    def _json(self, schema: Mapping[str, Any], *, lenient: bool = False) -> str:
        if not lenient:
            self._lengths.check(schema)
        return self._rule(f"%json {_guided(schema, lenient=lenient)}")

    def _grammar(self, grammar: str) -> str:
        name = f"g{len(self._grammars)}"
        self._grammars.append({"name": name, "lark_grammar": _to_lark(grammar)})
        return f"@{name}"

    def _regex(self, regex: str) -> str:
        self._lengths.check({"pattern": regex})
        return self._rule(_slashed(regex))

    def _quote(self, text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    def _rule(self, body: str, options: str = "") -> str:
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name


def needs_grammar(rules: ReplyRules, tools: Sequence[ToolSpec]) -> bool:
    """Whether anything is asked for that a grammar must enforce."""
    mode = rules.tool_choice.mode
    if rules.response_format is not None or mode in ("required", "named"):
        return True
    return _binds_calls(rules, tools)


def _binds_calls(rules: ReplyRules, tools: Sequence[ToolSpec]) -> bool:
    """Whether calls that the model makes of its own accord are held to anything."""
    is_free = rules.parallel_tool_calls and not any(tool.strict for tool in tools)
    return rules.tool_choice.mode == "auto" and bool(tools) and not is_free


def _unknown_calls(param: str) -> UnsupportedFeatureError:
    return UnsupportedFeatureError(
        "Calls cannot be enforced: how this model writes them is not known.", param=param
    )


def wire_name(rules: ReplyRules) -> str:
    """The field that a grammar came from."""
    if rules.response_format is None:
        return "tools"
    kind = rules.response_format.kind
    return "response_format" if kind.startswith("json") else f"structured_outputs.{kind}"


def _guided(schema: Mapping[str, Any], *, lenient: bool) -> str:
    # The key is llguidance's: a caller's own would switch off what is asked for here.
    guidance = {"whitespace_pattern": _JSON_BLANKS, "lenient": lenient}
    return json.dumps({**schema, "x-guidance": guidance}, allow_nan=False)


def _slashed(regex: str) -> str:
    """A regular expression in Lark, where a slash would end it, and a line's end its rule."""
    special = {"/": r"\/", "\n": r"\n"}
    return f"/{re.sub(_ONE, lambda found: special.get(found[0][-1], found[0]), regex)}/"


def _without(marker: str) -> str:
    """A regular expression for text that does not hold a marker.

    The negation of one that holds it takes llguidance very many states together with a length.
    """
    # Up to where its first character comes again: what stands between two of those is one block.
    first, *tail = map(re.escape, marker[0] + marker[1:].split(marker[0])[0])
    block = ""
    for char in reversed(tail):
        block = f"(?:[^{first}{char}][^{first}]*" + (f"|{char}{block})?" if block else ")?")
    return f"[^{first}]*" + (f"(?:{first}{block})*" if tail else "")


def _any_of(options: Iterable[str]) -> str:
    return " | ".join(options)


def _head(pieces: Sequence[Piece]) -> str:
    """The text that a call begins with."""
    return pieces[0] if pieces and isinstance(pieces[0], str) else ""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value


def _to_lark(grammar: str) -> str:
    try:
        lark: str = any_to_lark(grammar)  # GBNF is told from Lark by its ``::=``
    except Exception as error:  # the converter has errors of its own, of no common kind
        raise ValueError(f"it cannot be read as GBNF: {error}") from error
    return lark
