"""How the commands of `pippin models` print: JSON, a line of talk, and facts as two columns."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.table import Table
from rich.text import Text

from ..console import make_talk_console


def print_json(value: object) -> None:
    """Data for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def say(line: str) -> None:
    """A line for people."""
    make_talk_console().print(line, markup=False, soft_wrap=True)


def fact_table(facts: Mapping[str, str | None]) -> Table:
    """Names and values; what is unknown is left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            # As plain text: a model's name may hold brackets.
            table.add_row(Text(name, style="bold"), Text(value))
    return table


@contextmanager
def silenced(logger_name: str) -> Iterator[None]:
    """Keep a library's warnings off the screen."""
    logger = logging.getLogger(logger_name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
