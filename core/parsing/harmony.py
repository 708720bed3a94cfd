"""gpt-oss: every message of an answer has a header with a channel and perhaps a recipient.

Source: OpenAI, "OpenAI harmony response format".
"""

from __future__ import annotations

import re

from .call_reader import CallContext, copy_object
from .scanner import MalformedError, Pull

_HEADS = ("<|start|>", "<|channel|>")
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_BODY = "<|message|>"
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_REASONING_CHANNEL = re.compile(r"(?:.*<\|channel\|>)?\s*analysis\b", re.DOTALL)


def read_harmony(context: CallContext, starts_in_reasoning: bool) -> Pull[None]:
    """See `AnswerReader`."""
    scanner, out = context.scanner, context.out
    marker = ""
    if starts_in_reasoning:
        marker = yield from scanner.text_until((*_HEADS, *_ENDS), out.reasoning)
        out.is_reasoning = False
    while True:
        if marker not in _HEADS:
            marker = yield from scanner.text_until((*_HEADS, *_ENDS, _BODY), out.content)
        if not marker:
            return
        if marker not in _HEADS:
            marker = ""
            continue
        scanner.begin_call()
        try:
            header, _ = yield from scanner.word_until((_BODY,))
        except MalformedError:
            # A header says nothing to people: cut short, it is left out.
            if scanner.has_ended:
                return
            scanner.rewind()
            marker = ""
            continue
        scanner.end_call()
        marker = yield from _read_body(context, header)


def _read_body(context: CallContext, header: str) -> Pull[str]:
    """Read a message behind its header, and return the marker that ended it."""
    scanner, out = context.scanner, context.out
    recipient = _RECIPIENT.search(header)
    if recipient is not None:
        scanner.mark()
        scanner.begin_call()
        try:
            yield from _read_call(context, recipient[1].removeprefix("functions."))
        except MalformedError:
            if out.is_calling:
                marker = yield from scanner.text_until((*_HEADS, *_ENDS), out.arguments)
                out.leave()
                return marker
            out.content(scanner.rewind())
        scanner.end_call()
    out.is_reasoning = recipient is None and bool(_REASONING_CHANNEL.match(header))
    write = out.reasoning if out.is_reasoning else out.content
    marker = yield from scanner.text_until((*_HEADS, *_ENDS), write)
    out.is_reasoning = False
    return marker


def _read_call(context: CallContext, name: str) -> Pull[None]:
    scanner = context.scanner
    char = yield from scanner.skip_space()
    if char == "{":
        context.start(name)
        yield from copy_object(scanner, context.out.arguments)
    elif (yield from scanner.accept(_ENDS)):
        context.start(name)
        context.out.arguments("{}")
    else:
        # A built-in tool's code, which is no object.
        raise MalformedError
    context.end()
    yield from scanner.skip_space()
    scanner.mark()
