"""Every way a command can end badly, as one line on stderr and an exit code.

0 is success, 1 a failure, 2 a misuse (a flag, a setting, a variable), 130 an interrupt.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import Any

import typer
import typer.core

from pippin.core.errors import ConfigError, PippinError

FAILED = 1
MISUSED = 2
INTERRUPTED = 130

# The root of wrong flags and values, by way of a public name: where typer keeps its copy of click
# changes with its version.
UsageError: Any = typer.BadParameter.__base__


class OneLineErrors(typer.core.TyperGroup):
    """A command group that answers errors with one line instead of a box or a traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        try:
            result = super().main(
                args, prog_name, complete_var, False, windows_expand_args, **extra
            )
        except Exception as error:
            exit_code = _report(error)
        else:
            # typer returns the code of an `Exit` here instead of raising it.
            exit_code = result if isinstance(result, int) else 0
        sys.exit(exit_code)


def _report(error: Exception) -> int:
    """Print one line and return the exit code; raise what is our own bug again."""
    if isinstance(error, UsageError):
        context = error.ctx
        where = context.command_path if context is not None else "pippin"
        _print(f"{where}: {error.format_message()} (see {where} --help)")
        return MISUSED
    if isinstance(error, ConfigError):
        _print(f"pippin: {error}")
        return MISUSED
    if isinstance(error, PippinError):
        _print(f"pippin: {error}")
        return FAILED
    if isinstance(error, typer.Abort):
        return FAILED
    # Whoever read our output has gone, as `head` does.
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return FAILED
    raise error


def _print(line: str) -> None:
    # Not through rich: it would fold the line and read brackets as markup.
    print(" ".join(line.split()), file=sys.stderr)
