"""One setting, in all its forms: a flag, a variable, a key of the settings file, a text to read.

A settings class annotates its fields with `About`; `collect_settings` makes a `Setting` of each.
Options, file reader, ``--print-config``, default.toml and manual pages are derived from these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True)
class About:
    """What a field's type and default do not say.

    Attributes:
        help: Whole sentences.
        metavar: What stands for the value in the help; ``None`` for choices, which speak for
            themselves.
        more: Sentences that follow in the manual page and in default.toml.
        default: In words, where the default is no fixed value.
        minimum: Least number allowed.
        maximum: Largest number allowed.
        parse: Reads the text of a flag or the file; raises ValueError.
        example: What default.toml shows in place of the default.
    """

    help: str
    metavar: str | None = None
    more: str = ""
    default: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    parse: Callable[[str], object] | None = None
    example: str | int | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """A field of a settings class.

    Attributes:
        type: A class: int, float, str, a StrEnum, or tuple for a list of texts.
        default: ``None`` if it is no fixed value.
    """

    name: str
    type: Any
    default: Any
    about: About

    @property
    def key(self) -> str:
        """As files write it."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        """On the command line, where the model is an argument."""
        return "MODEL" if self.name == "model" else f"--{self.key}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"PIPPIN_{self.name.upper()}"

    @property
    def default_in_words(self) -> str:
        """What stands behind ``Default:``."""
        if self.about.default is not None:
            return self.about.default
        return f"{self.default:g}" if self.type is float else str(self.default or "none")

    @property
    def description(self) -> str:
        """All there is to say but the default, for those who have the room."""
        about = self.about
        limits = f"From {about.minimum} to {about.maximum}." if about.maximum is not None else ""
        if issubclass(self.type, StrEnum):
            limits = f"One of: {', '.join(self.type)}."
        return " ".join(filter(None, (about.help, limits, about.more)))

    def read(self, value: object) -> Any:
        """Turn a value of a TOML file into the field's.

        Raises:
            ValueError: It has a wrong type or is out of range.
        """
        # bool is an int to Python, but `port = true` is a mistake.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.about.parse is not None and (isinstance(value, str) or is_number):
            return self.about.parse(str(value))
        if self.type is tuple:
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError("must be a text or a list of texts")
            return tuple(texts)
        if issubclass(self.type, StrEnum):
            if value not in list(self.type):
                raise ValueError(f"must be one of {', '.join(self.type)}")
            return self.type(value)
        if self.type is str:
            if not isinstance(value, str):
                raise ValueError("must be a text")
            return value
        if not is_number or (self.type is int and not isinstance(value, int)):
            raise ValueError(f"must be a {'whole ' if self.type is int else ''}number")
        number = self.type(value)
        low, high = self.about.minimum, self.about.maximum
        # So that nan, which is neither below nor above, is out of range, too.
        if not ((low is None or number >= low) and (high is None or number <= high)):
            bounds = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ValueError(f"must be {bounds}, not {value}")
        return number


def collect_settings(settings_class: Any) -> dict[str, Setting]:
    """The settings of a dataclass, by field name and in its order."""
    hints = get_type_hints(settings_class, include_extras=True)
    settings = {}
    for field in fields(settings_class):
        hint, about = get_args(hints[field.name])
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        (kind,) = (kind for kind in kinds if kind is not NoneType)
        settings[field.name] = Setting(field.name, get_origin(kind) or kind, field.default, about)
    return settings
