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
        ("max_body_bytes", 0),
        ("sse_keepalive_s", -1.0),
        ("sse_keepalive_s", float("nan")),
        ("drain_timeout_s", float("inf")),
    ],
)
def test_a_wrong_setting_is_named(field: str, value: object) -> None:
    # Keys are named as a person gives them, one at a time.
    with pytest.raises(ConfigError, match=field.replace("api_keys", "api-key")):
        ServerConfig(**{field: value})  # type: ignore[arg-type]


def test_only_this_machine_by_default() -> None:
    assert ServerConfig().host == "127.0.0.1"
