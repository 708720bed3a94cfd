"""Manual pages, made of the command tree and of `man_prose`: ``python -m pippin.cli.man_page man``.

A command has a page of its own; the commands of a group are sections of the group's page. A page
has no date, so that the same version always gives the same pages.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import typer.main

from .main import app
from .man_prose import EXIT_STATUS, PROSE, Entry, Prose
from .settings import SERVE_SETTINGS

# groff folds lines itself; mandoc wants them short and each sentence on one of its own.
_WIDTH = 78
_SENTENCE_END = re.compile(r"(?<=[\w)'\"`]\.) +(?=[A-Z0-9'\"`(])")
_LITERAL = re.compile(r"`([^`]*)`")
_ESCAPES = str.maketrans({"\\": "\\e", "-": "\\-", "~": "\\(ti", "^": "\\(ha"})
# Between letters it is an apostrophe, and groff makes a good one.
_QUOTE = re.compile(r"(?<!\w)'|'(?!\w)")
# How typer names the type of a value without a name.
_TYPES = {"<str>": "TEXT", "<path>": "PATH"}


def man_pages() -> dict[str, str]:
    """The text of every manual page, by its file's name."""
    root: Any = typer.main.get_command(app)
    context = typer.Context(root, info_name="pippin", **root.context_settings)
    subs = list(_subcommands(root, context))
    others = {command.command_path: command for command in (context, *subs)}
    return {
        f"{path.replace(' ', '-')}.1": "\n".join(_page(command, list(others))) + "\n"
        for path, command in others.items()
    }


def _page(context: typer.Context, paths: list[str]) -> Iterator[str]:
    path, command = context.command_path, _command(context)
    prose = PROSE.get(path, Prose())
    name = path.replace(" ", "-")
    summary, *rest = _paragraphs(command.help)
    yield f'.TH {_escape(name.upper())} 1 "" "pippin {version("pippin")}" "User Commands"'
    # No word broken, no gaps between words: what is typed can be copied.
    yield from (".nh", ".ad l")
    yield ".SH NAME"
    yield f"{_escape(name)} \\- {_escape(_as_phrase(summary))}"
    yield from (".SH SYNOPSIS", _synopsis(context), ".SH DESCRIPTION")
    yield from _text(summary)
    yield from _body((*rest, *prose.description))
    subs = list(_subcommands(command, context))
    if subs:
        yield ".SH COMMANDS"
    for sub in subs:
        if path == "pippin":
            about = _command(sub).get_short_help_str(1000)
            yield from _entry((f"`{sub.info_name}`", f"{about} See {_page_name(sub)}(1)."))
        else:
            yield from (f".SS {_escape(str(sub.info_name))}", _synopsis(sub), ".PP")
            yield from _body(_paragraphs(_command(sub).help))
            yield from _options(sub, with_help=False)
    if path == "pippin" or not subs:
        yield ".SH OPTIONS"
        yield from _options(context)
    yield ".SH ENVIRONMENT"
    yield from _body(prose.environment)
    if prose.files:
        yield ".SH FILES"
        yield from _body(prose.files)
    yield ".SH EXIT STATUS"
    yield from _body(_by_code((*EXIT_STATUS, *prose.exit_status)))
    if prose.examples:
        yield ".SH EXAMPLES"
        yield from _body((f"`{line}`", text) for line, text in prose.examples)
    yield ".SH SEE ALSO"
    others = [other.replace(" ", "-") for other in paths if other != path]
    yield ",\n".join(f".BR {_escape(other)} (1)" for other in others).replace(" (1),", " (1),")


def _subcommands(command: Any, context: typer.Context) -> Iterator[typer.Context]:
    for name, sub in getattr(command, "commands", {}).items():
        if not sub.hidden:
            yield typer.Context(sub, info_name=name, parent=context)


def _command(context: typer.Context) -> Any:
    # Which class it is depends on typer's version.
    return context.command


def _page_name(context: typer.Context) -> str:
    return f"`{context.command_path.replace(' ', '-')}`"


def _synopsis(context: typer.Context) -> str:
    # Some versions of typer put what is required in braces, which elsewhere mean a choice.
    pieces = [piece.strip("{}") for piece in _command(context).collect_usage_pieces(context)]
    return _term(" ".join([f"`{context.command_path}`", *pieces]))


def _options(context: typer.Context, *, with_help: bool = True) -> Iterator[str]:
    for parameter in _command(context).get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and (with_help or parameter.name != "help"):
            yield from _entry((_parameter_name(parameter, record[0]), _parameter_text(parameter)))


def _parameter_name(parameter: Any, name: str) -> str:
    """``--port PORT`` with the flag in bold."""
    if parameter.param_type_name == "argument":
        return re.sub(r" <[\w ]+>$", "", name)
    name = re.sub(r"<[a-z ]+>$", lambda found: _TYPES.get(found[0], "NUMBER"), name)
    return re.sub(r"(?<![\w-])--?[\w-]+", r"`\g<0>`", name)


def _parameter_text(parameter: Any) -> str:
    text = parameter.help or ""
    setting = SERVE_SETTINGS.get(parameter.name)
    if setting is not None and text.startswith(setting.about.help):
        # The help is short; a page has the room.
        text = text.replace(setting.about.help, setting.description, 1)
    variables = parameter.envvar or []
    variables = [variables] if isinstance(variables, str) else variables
    if variables:
        text += f" Variable: {', else '.join(f'`{name}`' for name in variables)}."
    return text


def _body(content: Iterable[str | Entry]) -> Iterator[str]:
    """Paragraphs, and entries of lists."""
    for index, part in enumerate(content):
        if isinstance(part, str):
            yield from ([".PP"] if index else [])
            yield from _text(part)
        else:
            yield from _entry(part)


def _entry(entry: Entry) -> Iterator[str]:
    term, text = entry
    yield from (".TP", _term(term))
    yield from _text(text)


def _by_code(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: int(entry[0].strip("`")))


def _paragraphs(text: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def _as_phrase(sentence: str) -> str:
    # What comes behind a colon or a semicolon explains, and this must be short.
    words = re.split(r"[.;:] |\.$", sentence)[0]
    return words[0].lower() + words[1:]


def _text(text: str) -> Iterator[str]:
    for sentence in _SENTENCE_END.split(text):
        for line in textwrap.wrap(
            _inline(sentence), _WIDTH, break_long_words=False, break_on_hyphens=False
        ):
            yield _as_text(line)


def _as_text(line: str) -> str:
    # At the start of a line these would begin a request.
    return f"\\&{line}" if line.startswith((".", "'")) else line


def _term(text: str) -> str:
    """A line with what stands for a value in italics."""
    return _as_text(re.sub(r"(?<![\w\\])[A-Z_]{2,}(?!\w)", r"\\fI\g<0>\\fR", _inline(text)))


def _inline(text: str) -> str:
    """Escape, and set what stands between backticks in bold."""
    return "".join(
        f"\\fB{_escape(part)}\\fR" if index % 2 else _escape(part)
        for index, part in enumerate(_LITERAL.split(text))
    )


def _escape(text: str) -> str:
    return _QUOTE.sub(r"\\(aq", text.translate(_ESCAPES))


def write_man_pages(folder: Path) -> None:
    """Write all pages into a folder, in place of those of commands that are no more."""
    pages = man_pages()
    for stale in set(folder.glob("pippin*.1")) - {folder / name for name in pages}:
        stale.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_man_pages(Path(sys.argv[1]))
