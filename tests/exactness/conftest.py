"""Counts sequences and ties over the whole session, and says so at its end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from reference import Tally

_TALLY = pytest.StashKey[Tally]()


@pytest.fixture(scope="session")
def session_tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    tally = request.config.stash.setdefault(_TALLY, Tally(0, [], []))
    yield tally
    assert len(tally.ties) * 200 <= max(tally.num_sequences, 200), "\n".join(tally.ties)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    tally = config.stash.get(_TALLY, None)
    if tally is None:
        return
    terminalreporter.write_sep("-", "exactness")
    terminalreporter.write_line(
        f"{tally.num_sequences} answers compared with mlx-lm token for token: "
        f"{len(tally.ties)} ties, {len(tally.failures)} differences"
    )
    for line in tally.ties:
        terminalreporter.write_line(f"tie: {line}")
