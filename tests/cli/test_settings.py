"""Flag over environment over file over default, for every setting at once."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pippin.cli.main import app
from pippin.cli.settings import ServeSettings
from pippin.cli.settings_file import load_settings, read_settings_file, shipped_names
from pippin.core.config import CacheConfig, EngineConfig, KVBits, Speculation
from pippin.core.errors import ConfigError
from pippin.core.folders import cache_folder
from pippin.server.config import ServerConfig

# Three values for each setting that are neither the default nor each other.
VALUES: dict[str, tuple[Any, Any, Any]] = {
    "model": ("org/a", "org/b", "org/c"),
    "host": ("127.0.0.2", "127.0.0.3", "::1"),
    "port": (1, 2, 3),
    "served_model_name": ("one", "two", "three"),
    "alias": ("a1", "a2", "claude-*"),
    "max_model_len": (11, 12, 13),
    "max_num_seqs": (21, 22, 23),
    "kv_cache_memory": (31, 32, 33),
    "kv_bits": ("8", "4", "8,4"),
    "block_size": (4, 8, 16),
    "kv_disk_dir": ("/d1", "/d2", "/d3"),
    "kv_disk_size": (8 << 20, 9 << 20, "off"),
    "warm_prompts": ("/w1", "/w2", "/w3"),
    "prefill_chunk": (41, 42, 43),
    "max_queue": (51, 52, 53),
    "speculation": ("draft", "ngram", "off"),
    "draft_tokens": (2, 3, 4),
    "draft_model": ("org/d", "org/e", "org/f"),
    "tool_call_parser": ("hermes", "llama3", "off"),
    "reasoning_parser": ("think", "mistral", "off"),
    "response_store": ("/s1", "/s2", "off"),
    "max_body_size": (61, 62, 63),
    "sse_keepalive": (7.5, 8, 0),
    "drain_timeout": (71.5, 72, 0),
    "log_level": ("debug", "warning", "error"),
    "api_key": ("k1", "k2", "k3"),
}
LAYERS = ("flag", "env", "file")


def test_the_table_above_is_complete() -> None:
    assert set(VALUES) == {field.name for field in dataclasses.fields(ServeSettings)}


def run(args: list[str], env: dict[str, str]) -> ServeSettings:
    """The settings that `pippin serve` would run with."""
    with patch("pippin.cli.serve_run.run_serve") as run_serve:
        result = CliRunner().invoke(app, ["serve", *args], env=env)
    assert result.exit_code == 0, result.output
    (resolved,) = run_serve.call_args.args
    assert isinstance(resolved, ServeSettings)
    return resolved


def expected_value(name: str, layers: set[str]) -> Any:
    for index, layer in enumerate(LAYERS):
        if layer in layers:
            value = VALUES[name][index]
            if name == "kv_disk_size" and value == "off":
                return 0
            return (value,) if name in ("api_key", "alias") else value
    return getattr(ServeSettings(), name)


layer_choices = st.fixed_dictionaries({name: st.sets(st.sampled_from(LAYERS)) for name in VALUES})


@settings(max_examples=60, deadline=None)
@given(layer_choices, st.sampled_from("-_"))
def test_the_highest_layer_that_speaks_wins(chosen: dict[str, set[str]], dash: str) -> None:
    args, env, lines = [], {}, ["[serve]"]
    for name, layers in chosen.items():
        flag_value, env_value, file_value = VALUES[name]
        if "flag" in layers:
            flag = [] if name == "model" else [f"--{name.replace('_', '-')}"]
            args += [*flag, str(flag_value)]
        if "env" in layers:
            env[f"PIPPIN_{name.upper()}"] = str(env_value)
        if "file" in layers:
            quoted = f'"{file_value}"' if isinstance(file_value, str) else str(file_value)
            lines.append(f"{name.replace('_', dash)} = {quoted}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pippin.toml"
        path.write_text("\n".join(lines))
        resolved = run([*args, "--config", str(path)], env)
    for name, layers in chosen.items():
        assert getattr(resolved, name) == expected_value(name, layers), name


def test_nothing_given_is_the_configs_defaults() -> None:
    resolved = run([], {})
    assert resolved == ServeSettings()
    cache = CacheConfig(disk_folder=cache_folder() / "kv")
    assert resolved.engine_config() == EngineConfig(cache=cache)
    store = cache_folder() / "responses.sqlite"
    assert resolved.server_config() == ServerConfig(response_store=store)


def test_every_setting_arrives_in_a_config() -> None:
    given = {name: values[0] for name, values in VALUES.items()}
    given |= {"api_key": ["k1", "k2"], "alias": ["a1", "*"]}
    resolved = load_settings(given, None)
    engine, server = resolved.engine_config(), resolved.server_config()
    assert (engine.max_model_len, engine.cache.max_bytes, engine.cache.block_size) == (11, 31, 4)
    assert (engine.cache.disk_folder, engine.cache.disk_bytes) == (Path("/d1"), 8 << 20)
    assert engine.scheduler.max_num_seqs == 21
    assert (engine.scheduler.prefill_chunk, engine.scheduler.mixed_prefill_chunk) == (41, 41)
    assert engine.scheduler.max_queue == 51
    assert (engine.speculation, engine.draft_tokens) == (Speculation.DRAFT, 2)
    assert engine.draft_model == "org/d"
    assert (engine.tool_call_parser, engine.reasoning_parser) == ("hermes", "think")
    assert (server.host, server.port, server.api_keys) == ("127.0.0.2", 1, ("k1", "k2"))
    assert server.aliases == ("a1", "*")
    assert server.response_store == Path("/s1")
    limits = server.max_body_bytes, server.sse_keepalive_s, server.drain_timeout_s
    assert limits == (61, 7.5, 71.5)
    assert load_settings({"response_store": "off"}, None).server_config().response_store is None


def test_the_disk_cache_can_be_switched_off(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("[serve]\nkv-disk-size = 0\nkv-disk-dir = '~/kv'\n")
    for chosen in (run(["--kv-disk-size", "off"], {}), run(["--config", str(path)], {})):
        assert chosen.engine_config().cache.disk_folder is None
    again = run(["--config", str(path)], {"PIPPIN_KV_DISK_SIZE": "1GiB"}).engine_config().cache
    assert (again.disk_folder, again.disk_bytes) == (Path.home() / "kv", 1 << 30)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (Speculation.OFF, None)),
        ({"speculation": "ngram"}, (Speculation.NGRAM, None)),
        ({"draft_model": "org/d"}, (Speculation.DRAFT, "org/d")),
        ({"draft_model": "org/d", "speculation": "off"}, (Speculation.OFF, None)),
    ],
)
def test_a_draft_model_is_used_unless_speculation_is_off(
    given: dict[str, Any], expected: tuple[Speculation, str | None]
) -> None:
    config = load_settings(given, None).engine_config()
    assert (config.speculation, config.draft_model) == expected


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--speculation", "magic"], "'--speculation' (env var: 'PIPPIN_SPECULATION')"),
        (["--draft-tokens", "0"], "'--draft-tokens' (env var: 'PIPPIN_DRAFT_TOKENS')"),
        (["--draft-tokens", "16"], "'--draft-tokens' (env var: 'PIPPIN_DRAFT_TOKENS')"),
        (["--kv-disk-size", "much"], "'--kv-disk-size' (env var: 'PIPPIN_KV_DISK_SIZE')"),
        (["--kv-disk-size", "1MB"], "kv-disk-size must be 'off' or at least 8.0 MiB"),
        (["--speculation", "draft"], "speculation 'draft' needs a draft-model"),
        (
            ["--speculation", "ngram", "--draft-model", "org/d"],
            "draft-model goes with speculation 'draft' or 'mtp', not 'ngram'",
        ),
    ],
)
def test_wrong_speculation_is_misuse_and_named(args: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["serve", *args])
    assert result.exit_code == 2
    assert said in result.stderr


def test_keys_and_sizes_come_in_their_forms(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[serve]\nkv-cache-memory = "2GiB"\napi_key = ["a", "b"]\n')
    assert read_settings_file(path) == {"kv_cache_memory": 2 * 1024**3, "api_key": ("a", "b")}
    assert run(["--api-key", "a", "--api-key", "b"], {}).api_key == ("a", "b")
    assert run([], {"PIPPIN_API_KEY": "a b"}).api_key == ("a", "b")
    assert run(["--kv-cache-memory", "1.5GiB"], {}).kv_cache_memory == 3 * 512 * 1024**2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[serve]\nprot = 1", "unknown setting 'prot'; did you mean 'port'"),
        ("[serve]\nmax-num-seq = 1", "did you mean 'max-num-seqs'"),
        ("[serve]\nxyzzy = 1", "unknown setting 'xyzzy'"),
        ("[serves]\nport = 1", "'serves' is not known"),
        ("port = 1", "'port' is not known"),
        ("serve = 1", "'serve' is not known"),
        ("[serve]\nport = true", "'port': must be a whole number"),
        ('[serve]\nport = "80"', "'port': must be a whole number"),
        ("[serve]\nport = 65536", "'port': must be from 0 to 65535, not 65536"),
        ("[serve]\nmax-queue = 0", "'max-queue': must be at least 1, not 0"),
        ("[serve]\nhost = 1", "'host': must be a text"),
        ("[serve]\nlog-level = 'loud'", "'log-level': must be one of debug, info"),
        ("[serve]\nspeculation = 'magic'", "'speculation': must be one of off, ngram"),
        ("[serve]\ndraft-tokens = 'many'", "'draft-tokens': must be a whole number"),
        ("[serve]\ndrain-timeout = 'long'", "'drain-timeout': must be a number"),
        ("[serve]\ndrain-timeout = true", "'drain-timeout': must be a number"),
        ("[serve]\ndrain-timeout = nan", "must be from 0 to 86400, not nan"),
        ("[serve]\nsse-keepalive = inf", "must be from 0 to 86400, not inf"),
        ("[serve]\nkv-cache-memory = '2XB'", "'kv-cache-memory': '2XB' is not a size"),
        ("[serve]\nkv-cache-memory = -1", "'kv-cache-memory': '-1' is not a size"),
        ("[serve]\nkv-cache-memory = [1]", "'kv-cache-memory': must be a whole number"),
        ("[serve]\nmax-body-size = 0", "'max-body-size': '0' is less than one byte"),
        ("[serve]\nkv-disk-size = 'no'", "'kv-disk-size': 'no' is not a size"),
        ("[serve]\napi-key = [1]", "'api-key': must be a text or a list of texts"),
        ("[serve]\nalias = 1", "'alias': must be a text or a list of texts"),
        ("[serve]\nmax-queue = 1\nmax_queue = 2", "'max_queue' is given twice"),
        ("[serve\n", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_misuse_and_named(tmp_path: Path, content: str | bytes, said: str) -> None:
    path = tmp_path / "p.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        read_settings_file(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    result = CliRunner().invoke(app, ["serve", "--config", str(path)])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_a_missing_file_is_misuse(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", "--config", str(tmp_path / "gone.toml")])
    assert result.exit_code == 2
    assert "gone.toml cannot be read" in result.stderr


def test_a_shipped_file_goes_by_its_name_unless_there_is_such_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"default", "agents", "many-models", "mac-studio"} <= {*shipped_names()}
    assert run(["--config", "default"], {}) == ServeSettings()
    assert run([], {"PIPPIN_CONFIG": "agents"}).alias == ("claude-*", "local")
    Path("agents").write_text("[serve]\nport = 5\n")
    assert run(["--config", "agents"], {}) == ServeSettings(port=5)


def test_a_name_that_is_not_shipped_is_told_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["serve", "--config", "agent"])
    assert result.exit_code == 2
    names = ", ".join(shipped_names())
    assert (
        result.stderr
        == f"pippin: agent cannot be read: No such file or directory (there are: {names})\n"
    )


def test_kv_bits_may_be_a_number_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pippin.toml"
    path.write_text("[serve]\nkv-bits = 8\n")
    assert load_settings({}, path).engine_config().cache.kv_bits == KVBits(8, 8)
    assert load_settings({"kv_bits": "8,4"}, path).engine_config().cache.kv_bits == KVBits(8, 4)
    assert load_settings({"kv_bits": "off"}, path).engine_config().cache.kv_bits is None
    with pytest.raises(ConfigError, match="kv-bits must be 8, 4"):
        load_settings({"kv_bits": "5"}, None).engine_config()
