"""Settings of `pippin serve`: flag over environment over file over default, into frozen configs.

Flags and environment come from the option parser, merged and typed; the file is read here.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pippin.core.config import CacheConfig, EngineConfig, KVBits, SchedulerConfig, Speculation
from pippin.core.errors import ConfigError
from pippin.core.models.cache_folder import cache_folder
from pippin.server.config import ServerConfig

from .byte_size import format_bytes, parse_bytes, parse_disk_bytes

_TABLE = "serve"
LOG_LEVELS = ("debug", "info", "warning", "error")
_CHOICES = {"log_level": LOG_LEVELS, "speculation": tuple(Speculation)}
_TEXTS = (
    *("model", "host", "served_model_name", "draft_model"),
    *("tool_call_parser", "reasoning_parser", "response_store", *_CHOICES),
    *("kv_bits", "kv_disk_dir", "warm_prompts"),
)
_SIZES = {"kv_cache_memory": parse_bytes, "kv_disk_size": parse_disk_bytes}
_LISTS = ("api_key", "alias")
_SERVER, _ENGINE = ServerConfig(), EngineConfig()
_CACHE, _SCHEDULER = _ENGINE.cache, _ENGINE.scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """All settings of one `pippin serve`; a field is a flag, a variable and a key of the file.

    Attributes:
        served_model_name: ``None`` keeps the model's own.
        max_model_len: In tokens; ``None`` takes what model and memory allow.
        kv_cache_memory: In bytes; ``None`` sizes it from the device's memory.
        kv_bits: See `KVBits.parse`.
        kv_disk_dir: A path; ``None`` is a folder in the cache folder.
        kv_disk_size: In bytes; 0 is off, and ``None`` a share of the disk's free space.
        warm_prompts: Path of a file; ``None`` for none.
        speculation: ``None`` is ``draft`` if there is a draft model, else ``off``.
        tool_call_parser: A dialect's name, or ``off``; ``None`` takes the chat template's.
        reasoning_parser: The same.
        response_store: A path, or ``off``; ``None`` is a file in the cache folder.
    """

    model: str = "demo"
    host: str = _SERVER.host
    port: int = _SERVER.port
    served_model_name: str | None = None
    alias: tuple[str, ...] = _SERVER.aliases
    max_model_len: int | None = None
    max_num_seqs: int = _SCHEDULER.max_num_seqs
    kv_cache_memory: int | None = _CACHE.max_bytes
    kv_bits: str = "off"
    block_size: int = _CACHE.block_size
    kv_disk_dir: str | None = None
    kv_disk_size: int | None = None
    warm_prompts: str | None = None
    prefill_chunk: int = _SCHEDULER.prefill_chunk
    max_queue: int = _SCHEDULER.max_queue
    speculation: str | None = None
    draft_tokens: int = _ENGINE.draft_tokens
    draft_model: str | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    response_store: str | None = None
    log_level: str = "info"
    api_key: tuple[str, ...] = _SERVER.api_keys

    def engine_config(self) -> EngineConfig:
        """Raises ConfigError if a value is out of range, or two do not go together."""
        # Only here: the other commands need not wait for it.
        from pippin.core.cache.disk.tier import MIN_MAX_BYTES

        if self.kv_disk_size is not None and not (
            self.kv_disk_size == 0 or self.kv_disk_size >= MIN_MAX_BYTES
        ):
            least = format_bytes(MIN_MAX_BYTES)
            raise ConfigError(f"kv-disk-size must be 'off' or at least {least}")
        default = Speculation.OFF if self.draft_model is None else Speculation.DRAFT
        speculation = default if self.speculation is None else Speculation(self.speculation)
        is_off = speculation is Speculation.OFF  # for a while, with a draft model in the file
        return EngineConfig(
            max_model_len=self.max_model_len,
            speculation=speculation,
            draft_tokens=self.draft_tokens,
            draft_model=None if is_off else self.draft_model,
            tool_call_parser=self.tool_call_parser,
            reasoning_parser=self.reasoning_parser,
            cache=CacheConfig(
                block_size=self.block_size,
                max_bytes=self.kv_cache_memory,
                kv_bits=KVBits.parse(self.kv_bits),
                disk_folder=None if self.kv_disk_size == 0 else disk_folder(self.kv_disk_dir),
                disk_bytes=self.kv_disk_size or None,
            ),
            scheduler=SchedulerConfig(
                max_num_seqs=self.max_num_seqs,
                prefill_chunk=self.prefill_chunk,
                mixed_prefill_chunk=min(self.prefill_chunk, _SCHEDULER.mixed_prefill_chunk),
                max_queue=self.max_queue,
            ),
        )

    def server_config(self) -> ServerConfig:
        """Raises ConfigError if a value is out of range."""
        store = self.response_store or cache_folder() / "responses.sqlite"
        return ServerConfig(
            host=self.host,
            port=self.port,
            api_keys=self.api_key,
            aliases=self.alias,
            response_store=None if store == "off" else Path(store).expanduser(),
        )


def disk_folder(given: str | None) -> Path:
    """The folder of the disk cache."""
    return Path(given or cache_folder() / "kv").expanduser()


def load_settings(given: Mapping[str, Any], file: Path | None) -> ServeSettings:
    """Put the layers together.

    Args:
        given: Values of flags and environment by field name; ``None`` and an empty list mean that
            it was not given.
        file: A TOML file with a ``[serve]`` table.

    Raises:
        ConfigError: The file cannot be read, holds an unknown key or a value of a wrong type; the
            message names the key and the file.
    """
    values = read_settings_file(file) if file is not None else {}
    values |= {name: value for name, value in given.items() if value not in (None, [], ())}
    values |= {name: tuple(values[name]) for name in _LISTS if name in values}
    return ServeSettings(**values)


def read_settings_file(path: Path) -> dict[str, Any]:
    """The ``[serve]`` table by field name, checked; keys may be written with ``-`` or ``_``.

    Raises:
        ConfigError: As for `load_settings`.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for name, table in content.items():
        if name != _TABLE or not isinstance(table, dict):
            raise ConfigError(f"{path}: '{name}' is not known; settings go into a [{_TABLE}] table")
    values: dict[str, Any] = {}
    for key, value in content.get(_TABLE, {}).items():
        name = key.replace("-", "_")
        if name in values:
            raise ConfigError(f"{path}: '{key}' is given twice")
        values[name] = _checked(name, key, value, path)
    return values


def _checked(name: str, key: str, value: Any, path: Path) -> Any:
    known = {field.name for field in fields(ServeSettings)}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{close[0].replace('_', '-')}'?" if close else ""
        raise ConfigError(f"{path}: unknown setting '{key}'{hint}")
    if name in _SIZES and isinstance(value, str):
        return _read_size(name, key, value, path)
    if name in _LISTS:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(entry, str) for entry in texts):
            raise ConfigError(f"{path}: '{key}' must be a text or a list of texts")
        return tuple(texts)
    value = str(value) if name == "kv_bits" else value  # 8 is as good as "8"
    if name in _TEXTS:
        if not isinstance(value, str):
            raise ConfigError(f"{path}: '{key}' must be a text")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ConfigError(f"{path}: '{key}' must be one of {', '.join(_CHOICES[name])}")
        return value
    # bool is an int to Python, but `port = true` is a mistake.
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{path}: '{key}' must be a whole number")
    return value


def _read_size(name: str, key: str, text: str, path: Path) -> int:
    try:
        return _SIZES[name](text)
    except ValueError as error:
        raise ConfigError(f"{path}: '{key}': {error}") from error
