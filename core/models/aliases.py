"""Short names that people give to models, in ``aliases.toml`` of pippin's configuration folder.

Not in the cache folder: what is there can be made again, and this cannot.
"""

from __future__ import annotations

import os
import re
import tempfile
import tomllib
from pathlib import Path

from ..errors import ConfigError
from ..folders import config_folder
from .cache_folder import file_lock, models_folder

# No slash: neither a hub id nor a path can be meant.
_NAME = re.compile(r"[A-Za-z0-9][\w.:-]*", re.ASCII)
_TABLE = "aliases"
DEMO = "demo"


def read_aliases() -> dict[str, str]:
    """Target by alias, sorted; empty if none was ever made.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    path = _file()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    table = content.get(_TABLE, {})
    if not isinstance(table, dict) or not all(isinstance(it, str) for it in table.values()):
        raise ConfigError(f"{path}: every line of [{_TABLE}] must be a name and a text")
    return dict(sorted(table.items()))


def follow_aliases(text: str) -> str:
    """What stands at the end of a chain of aliases; `text` itself if it is none.

    Raises:
        ConfigError: See `read_aliases`; or the aliases go in a circle.
    """
    # No file is read for a path or a hub id.
    return _follow(text, read_aliases()) if _NAME.fullmatch(text) else text


def _follow(text: str, aliases: dict[str, str]) -> str:
    seen = [text]
    while seen[-1] in aliases:
        seen.append(aliases[seen[-1]])
        if seen[-1] in seen[:-1]:
            raise ConfigError(f"the aliases {' -> '.join(seen)} go in a circle")
    return seen[-1]


def add_alias(name: str, target: str) -> None:
    """Keep a name for a target, which must be a model argument and not a relative path.

    Raises:
        ConfigError: It is no name that an alias can have, it is taken, or the aliases would go in
            a circle.
    """
    if not _NAME.fullmatch(name) or name.lower().endswith(".gguf"):
        raise ConfigError(
            f"'{name}' cannot be an alias: letters, digits and any of . _ : - after the first, "
            "and no .gguf at the end"
        )
    if name == DEMO or (models_folder() / name).is_dir():
        raise ConfigError(f"'{name}' is the name of a model already")
    with file_lock(_file().with_name(".aliases.lock"), on_wait=lambda: None):
        aliases = read_aliases()
        if aliases.get(name, target) != target:
            raise ConfigError(
                f"'{name}' is an alias of {aliases[name]} already; "
                f"`pippin models alias {name} --remove` frees it"
            )
        _follow(name, {**aliases, name: target})
        _write({**aliases, name: target})


def remove_alias(name: str) -> str:
    """Forget a name; return what it stood for.

    Raises:
        ConfigError: There is no such alias.
    """
    with file_lock(_file().with_name(".aliases.lock"), on_wait=lambda: None):
        aliases = read_aliases()
        if name not in aliases:
            raise ConfigError(f"there is no alias '{name}'")
        target = aliases.pop(name)
        _write(aliases)
    return target


def _file() -> Path:
    return config_folder() / "aliases.toml"


def _write(aliases: dict[str, str]) -> None:
    import tomli_w

    path = _file()
    handle, part = tempfile.mkstemp(prefix=".aliases.", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(tomli_w.dumps({_TABLE: dict(sorted(aliases.items()))}))
        out.flush()
        os.fsync(handle)
    Path(part).replace(path)
