"""Names of fields in errors: the engine knows them by what the chat API calls them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pippin.core.errors import InvalidRequestError


@contextmanager
def named_as(names: Mapping[str, str]) -> Iterator[None]:
    """Name fields as another API does, in errors that the block raises.

    Args:
        names: The chat API's names, or beginnings of dotted ones, to those of the other.
    """
    try:
        yield
    except InvalidRequestError as error:
        for name in sorted(names, key=len, reverse=True):
            whole = re.compile(rf"(?<![\w.]){re.escape(name)}(?![\w])")
            if error.param is not None and whole.match(error.param):
                error.args = (whole.sub(names[name], str(error)),)
                error.param = whole.sub(names[name], error.param)
                break
        raise
