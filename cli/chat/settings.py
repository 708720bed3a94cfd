"""What an answer can be asked for: the names, how they are read, and what they may be."""

from __future__ import annotations

import difflib
import json
from typing import Any

from pippin.core.errors import ConfigError, InvalidRequestError
from pippin.core.sampling_params import SamplingParams

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_SWITCH = {"on": True, "true": True, "off": False, "false": False}

SETTINGS = {
    "temperature": "0 draws the likeliest token, 1 draws as the model says, 2 is the most",
    "top_p": "keep the likeliest tokens that make up this much probability, up to 1",
    "top_k": "keep this many likeliest tokens; 0 keeps all",
    "min_p": "keep tokens at least this likely relative to the likeliest, 0 to 1",
    "repetition_penalty": "above 1 makes tokens of prompt and answer less likely",
    "presence_penalty": "-2 to 2: taken off tokens that the answer holds",
    "frequency_penalty": "-2 to 2: the same for each time that it holds them",
    "max_tokens": "most tokens of an answer",
    "min_tokens": "least tokens of an answer",
    "seed": "makes answers repeatable",
    "stop": 'text that ends the answer; several as a JSON list, ["a", "b"]',
    "reasoning_effort": f"how much to think: {', '.join(EFFORTS)}",
    "thinking_budget": "most tokens of reasoning",
    "thinking": "on or off, for models that can do both",
}
_WHOLE = ("top_k", "max_tokens", "min_tokens", "seed", "thinking_budget")


def read_setting(name: str, text: str) -> Any:
    """The value that a text gives a setting; the name may be written with ``-``.

    Raises:
        ConfigError: There is no such setting, or it cannot be that.
    """
    name = setting_name(name)
    value: Any = text
    if name == "thinking":
        value = _SWITCH.get(text.lower())
    elif name == "stop":
        value = _read_stop(text)
    elif name != "reasoning_effort":
        try:
            value = int(text) if name in _WHOLE else float(text)
        except ValueError:
            kind = "a whole number" if name in _WHOLE else "a number"
            raise ConfigError(f"{name} must be {kind}, not '{text}'") from None
    return check_setting(name, value)


def setting_name(name: str) -> str:
    """A name as `SETTINGS` has it.

    Raises:
        ConfigError: There is no such setting.
    """
    known = name.replace("-", "_").lower()
    if known not in SETTINGS:
        close = difflib.get_close_matches(known, SETTINGS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(SETTINGS)}"
        raise ConfigError(f"there is no setting '{name}'; {hint}")
    return known


def check_setting(name: str, value: Any) -> Any:
    """The value, if the setting can be that.

    Raises:
        ConfigError: It cannot.
    """
    if name == "thinking":
        is_good, wanted = isinstance(value, bool), "on or off"
    elif name == "reasoning_effort":
        is_good, wanted = value in EFFORTS, f"one of {', '.join(EFFORTS)}"
    elif name == "stop":
        is_good = isinstance(value, list) and all(isinstance(it, str) for it in value)
        wanted = "a text or a list of texts"
    elif name in _WHOLE:
        is_good, wanted = type(value) is int, "a whole number"
        if is_good and name in ("max_tokens", "thinking_budget"):
            least = 1 if name == "max_tokens" else 0
            is_good, wanted = value >= least, f"at least {least}"
    else:
        is_good, wanted = type(value) in (int, float), "a number"
    if not is_good:
        raise ConfigError(f"{name} must be {wanted}")
    if name in SamplingParams.__dataclass_fields__:
        try:
            SamplingParams.over({}, {name: tuple(value) if name == "stop" else value})
        except InvalidRequestError as error:
            raise ConfigError(str(error).removesuffix(".")) from None
    return value


def show_value(value: Any) -> str:
    """A value as `read_setting` takes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)


def _read_stop(text: str) -> Any:
    if text[:1] not in ('"', "["):
        return [text]
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"stop is no JSON: {error}") from None
    return [value] if isinstance(value, str) else value
