from __future__ import annotations

import pytest

from pippin.core.errors import ConfigError
from pippin.server.config import ServerConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("api_keys", ("",)),
        ("api_keys", (" a",)),
        ("api_keys", ("ä",)),
        ("aliases", ("",)),
        ("max_body_bytes", 0),
        ("sse_keepalive_s", -1.0),
        ("sse_keepalive_s", float("nan")),
        ("drain_timeout_s", float("inf")),
    ],
)
def test_a_wrong_setting_is_named(field: str, value: object) -> None:
    # What may be given several times is named as a person gives it, one at a time.
    name = {"api_keys": "api-key", "aliases": "alias"}.get(field, field)
    with pytest.raises(ConfigError, match=name):
        ServerConfig(**{field: value})  # type: ignore[arg-type]


def test_only_this_machine_by_default() -> None:
    assert ServerConfig().host == "127.0.0.1"
