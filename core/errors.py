"""Errors that pippin raises on purpose.

PippinError
├─ InvalidRequestError        the caller's fault; names the field where there is one
│  ├─ ContextLengthError      prompt plus answer exceed what the model can hold
│  └─ UnsupportedFeatureError a field or model feature that cannot be honoured
├─ ModelNotFoundError         no model of that name
├─ ModelLoadError             a model is there but cannot be used
├─ DownloadError              a model could not be fetched
├─ ConfigError                a setting is wrong; names the setting
├─ OverloadedError            the waiting queue is full, or the server is draining
├─ CacheFullError             internal: the scheduler preempts on it
├─ GenerationError            this one request failed inside the engine
└─ EngineStoppedError         the engine thread is gone; carries the cause

Status codes and exit codes belong to the server and the command line.
"""

from __future__ import annotations


class PippinError(Exception):
    """Base of the tree. ``str(error)`` is one line, fit to show to a person."""


class InvalidRequestError(PippinError):
    """The request cannot be served as asked.

    Attributes:
        param: Dotted name of the offending field, or ``None``.
        code: Short machine-readable reason, or ``None``.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(InvalidRequestError):
    """The prompt, or the prompt and the asked-for answer, are too long for the model."""

    def __init__(
        self,
        *,
        num_prompt_tokens: int,
        max_tokens: int | None,
        limit: int,
        param: str = "messages",
    ) -> None:
        asked = "" if max_tokens is None else f" and asks for {max_tokens} more"
        super().__init__(
            f"This model's maximum context length is {limit} tokens, but the prompt has "
            f"{num_prompt_tokens} tokens{asked}.",
            param=param,
            code="context_length_exceeded",
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.max_tokens = max_tokens
        self.limit = limit


class UnsupportedFeatureError(InvalidRequestError):
    """A field is understood but cannot be honoured."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param, code="unsupported_value")


class ModelNotFoundError(PippinError):
    """No model answers to this name."""

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{model}' does not exist.")
        self.model = model


class ModelLoadError(PippinError):
    """A model folder or file cannot be loaded; the message says why."""


class DownloadError(PippinError):
    """A model could not be fetched or did not match its checksum."""


class ConfigError(PippinError):
    """A setting is unknown or has a wrong value; the message names it."""


class OverloadedError(PippinError):
    """No room for another request right now.

    Attributes:
        retry_after_s: Seconds after which a new try makes sense.
    """

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CacheFullError(PippinError):
    """Fewer blocks can be had than are needed."""

    def __init__(self, *, needed: int, available: int) -> None:
        super().__init__(f"needed {needed} blocks, {available} available")
        self.needed = needed
        self.available = available


class GenerationError(PippinError):
    """One request failed inside the engine; the others go on."""


class EngineStoppedError(PippinError):
    """The engine does not run (any more)."""
