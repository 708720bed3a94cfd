"""What real shells offer behind a TAB, with the scripts that `--show-completion` gives them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pippin.cli.main import app

# Each prints, for every line of its input, the suggestions behind it and a line with a full stop.
BASH = """
eval "$(_PIPPIN_COMPLETE=source_bash pippin)"
while IFS= read -r line; do
    COMP_WORDS=($line); [[ $line == *' ' ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    _pippin_completion pippin
    printf '%s\\n' "${COMPREPLY[@]}" .
done
"""
FISH = """
_PIPPIN_COMPLETE=source_fish pippin | source
while read --local line
    complete -C "$line" | string split --fields 1 \\t
    echo .
end
"""
# Without a terminal there is no completion in zsh: this shows what it would be given.
ZSH = """
compdef() { }
_files() { }
_arguments() { local choices=${1#*: :\\(\\(}; print -l -- ${${(Q)${(z)${choices%))}}}%%:*} }
eval "$(_PIPPIN_COMPLETE=source_zsh pippin)"
while IFS= read -r line; do
    words=(${=line}); [[ $line == *' ' ]] && words+=("")
    CURRENT=$#words _pippin_completion
    print .
done
"""
SHELLS = {"bash": ["bash", "--norc", "-c", BASH], "fish": ["fish", "--no-config", "-c", FISH]}
SHELLS["zsh"] = ["zsh", "-f", "-c", ZSH]


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """With a model in every place, and a settings file."""
    (tmp_path / "hf" / "hub" / "models--org--tiny--er").mkdir(parents=True)
    (tmp_path / "cache" / "models" / "mine").mkdir(parents=True)
    (tmp_path / "cache" / "models" / ".mine.part-x").mkdir()
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "aliases.toml").write_text('[aliases]\ncoder = "org/tiny"\n')
    (tmp_path / "my.toml").write_text("")
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HOME": str(home / "hf"),
        "PIPPIN_CACHE_DIR": str(home / "cache"),
        "PIPPIN_CONFIG_DIR": str(home / "config"),
    }


def suggest(shell: str, home: Path, *lines: str) -> list[set[str]]:
    """What a shell would offer for each of the lines, in the folder `home`."""
    ended = subprocess.run(
        SHELLS[shell],
        input="".join(f"{line}\n" for line in lines),
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.stderr == ""
    answers = ended.stdout.split(".\n")[:-1]
    return [set(answer.split()) for answer in answers]


def test_shells_complete_commands_options_and_values(shell: str, home: Path) -> None:
    commands, groups, options, values, configs, models, begun = suggest(
        shell,
        home,
        "pippin ",
        "pippin cache ",
        "pippin serve --kv-",
        "pippin serve --speculation ",
        "pippin serve --config ",
        "pippin serve ",
        "pippin serve --draft-model org",
    )
    assert {"serve", "chat", "models", "cache", "bench-serve"} <= commands
    assert {"ls", "prune", "warm"} <= groups
    assert options == {"--kv-cache-memory", "--kv-bits", "--kv-disk-dir", "--kv-disk-size"}
    assert {"off", "ngram", "draft"} <= values
    assert {"default", "agents", "many-models", "mac-studio", "my.toml"} == configs
    assert {"demo", "coder", "mine", "org/tiny--er"} == models
    assert begun == {"org/tiny--er"}


def test_nothing_is_offered_but_the_options_of_a_command(shell: str, home: Path) -> None:
    """A description that is folded, or ends a quotation, would make suggestions of its words."""
    commands: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
    names = ("serve", "chat", "bench-serve")
    for name, found in zip(
        names, suggest(shell, home, *(f"pippin {it} --" for it in names)), strict=True
    ):
        flags = {
            flag
            for parameter in commands[name].params
            for flag in (*parameter.opts, *parameter.secondary_opts)
        }
        assert found == {flag for flag in flags if flag.startswith("--")} | {"--help"}


def test_a_broken_file_of_aliases_offers_the_others(home: Path) -> None:
    (home / "config" / "aliases.toml").write_text("[")
    (models,) = suggest("bash", home, "pippin serve ")
    assert models == {"demo", "mine", "org/tiny--er"}


def test_a_tab_loads_nothing_heavy(home: Path) -> None:
    code = """
import json, sys
from pippin.cli.completion import complete_configs, complete_models
complete_models(""), complete_configs("")
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    ended = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=environment(home),
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"mlx", "huggingface_hub", "httpx", "rich", "pydantic", "numpy", "transformers"}
    assert not heavy & set(json.loads(ended.stdout))
