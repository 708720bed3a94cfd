"""Settings are read as they are meant, and refused by name."""

from typing import Any

import pytest

from pippin.cli.chat.settings import SETTINGS, check_setting, read_setting, show_value
from pippin.core.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.5", 0.5),
        ("Top-P", "1", 1.0),
        ("top_k", "40", 40),
        ("seed", "-7", -7),
        ("stop", "END", ["END"]),
        ("stop", '"\\n"', ["\n"]),
        ("stop", '["a", "b"]', ["a", "b"]),
        ("reasoning_effort", "low", "low"),
        ("thinking_budget", "0", 0),
        ("thinking", "off", False),
        ("thinking", "on", True),
    ],
)
def test_a_text_gives_a_value_and_back(name: str, text: str, value: Any) -> None:
    assert read_setting(name, text) == value
    assert read_setting(name, show_value(value)) == value


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("temprature", "1", "did you mean temperature"),
        ("colour", "1", "there is no setting 'colour'; there are temperature, "),
        ("temperature", "2.5", "temperature must be at least 0.0 and at most 2.0"),
        ("temperature", "nan", "temperature must be"),
        ("temperature", "warm", "temperature must be a number, not 'warm'"),
        ("top_p", "0", "top_p must be greater than 0"),
        ("top_k", "1.5", "top_k must be a whole number"),
        ("max_tokens", "0", "max_tokens must be at least 1"),
        ("thinking_budget", "-1", "thinking_budget must be at least 0"),
        ("stop", "[1]", "stop must be"),
        ("stop", '["a"', "stop is no JSON"),
        ("stop", "", "stop holds an empty string"),
        ("reasoning_effort", "huge", "reasoning_effort must be one of none"),
        ("thinking", "maybe", "thinking must be on or off"),
    ],
)
def test_what_cannot_be_is_refused_by_name(name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_setting(name, text)


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_takes_a_value_of_a_wrong_type(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        check_setting(name, {})
