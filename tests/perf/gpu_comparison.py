"""pippin and mlx-lm on one GPU: throughput, long contexts, prefill, stalls, speculation, kernels.

Run by hand, a part or several at a time::

    python tests/perf/gpu_comparison.py --part serve,stall --tokenizer DIR --output FILE

Models are made on the way (``synthetic_model.py``), unless ``--model`` names one. Each server has
the GPU to itself: pippin is measured on all models, then the peer. Parts are the functions of
``gpu_parts.py``; ``by_peer`` is pippin's figure by the peer's, the faster one's if there are two.
``speculation`` compares pippin with itself, and ``kernel`` runs the kernels' own scripts.

A part ends within ``--limit`` seconds, which its servers share, starting included; making models
comes on top. What is cut off is a row with an error. Tables and progress go to stderr, one line of
JSON to stdout and, as it grows, to ``--output``. ``--tiny`` tries everything out without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import gpu_parts
from comparison_report import rounded
from gpu_parts import TINY_SIZES, Bench, Jobs, Row, Sizes
from server_process import Server, running, say
from workloads import MODEL_NAME, edit_jobs, make_jobs, read_cycle, repeat_jobs

_HERE = Path(__file__).parent
# The part, and the figure by which servers are compared.
_SERVED: dict[str, tuple[Callable[[Bench], Iterator[Row]], str]] = {
    "serve": (gpu_parts.serve, "tok_s"),
    "context": (gpu_parts.context, "decode_tok_s"),
    "prefill": (gpu_parts.prefill, "prefill_tok_s"),
    "stall": (gpu_parts.stall, "p99_s"),
}
_PARTS = (*_SERVED, "speculation", "kernel")
_KERNEL_SCRIPTS = (
    ("attention_bandwidth.py", "--quick"),
    ("quantized_matmul_speed.py", "--part", "check", "--part", "models"),
)
# Two servers share the GPU in `speculation`.
_SHARED_KV_MEMORY = "2GiB"
_WIDEST = 60  # cell of a table


class Session:
    """The models, the servers and the time of one part."""

    def __init__(self, args: argparse.Namespace, part: str) -> None:
        self.args = args
        self.part = part
        self.sizes: Sizes = args.sizes
        names = [] if part == "kernel" else args.models
        self.models = {name: args.model or self._make_model(name) for name in names}
        self.ends_at = time.monotonic() + args.limit

    def rows(self) -> Iterator[Row]:
        """Everything that the part measures."""
        if self.part == "kernel":
            yield from self._kernel_rows()
            return
        servers = ["pippin"] if self.part == "speculation" else ["pippin", *self.args.peers]
        runs = [(server, model) for server in servers for model in self.models]
        for index, (server, model) in enumerate(runs):
            left_s = self.ends_at - time.monotonic()
            # Compilation makes some far slower to start than others.
            share = min(1.0, 1.5 / (len(runs) - index))
            ends_at = time.monotonic() + max(1.0, left_s * share)
            label = {"model": model, "server": server}
            try:
                for row in self._measure(server, model, ends_at):
                    say(f"{self.part}, {server}, {model}: {row['case']}")
                    yield label | row
            # Whatever happened to one server, the others' figures count.
            except Exception as error:
                say(f"{self.part}, {server}, {model}: {error}")
                yield {**label, "error": _reason(error)}

    def _make_model(self, name: str) -> Path:
        # Tied embeddings cannot be made to go through the cycle.
        shape = "small-untied" if (self.part, name) == ("speculation", "small") else name
        folder = Path(self.args.folder, f"synthetic-{shape}")
        command = [sys.executable, str(_HERE / "synthetic_model.py"), shape, str(folder)]
        subprocess.run([*command, "--tokenizer", str(self.args.tokenizer)], check=True)
        return folder

    def _measure(self, server: str, model: str, ends_at: float) -> Iterator[Row]:
        folder = self.models[model]
        ours = ["pippin.cli", "serve", str(folder), "--served-model-name", MODEL_NAME]
        ours += self.args.pippin_args

        def run(name: str, *command: str) -> AbstractContextManager[Server]:
            log = self.args.logs / f"{self.part}-{model}-{name}.log"
            return running(name, command, log=log, timeout_s=ends_at - time.monotonic())

        if self.part == "speculation":
            ours += ["--kv-cache-memory", _SHARED_KV_MEMORY, "--speculation"]
            with run("off", *ours, "off") as off:
                off.pause()
                with run("ngram", *ours, "ngram") as ngram:
                    ngram.pause()
                    plain, guessing = (Bench(s, self.sizes, ends_at) for s in (off, ngram))
                    yield from gpu_parts.speculation(plain, guessing, self._workloads(folder))
        elif server == "pippin":
            with run(server, *ours) as pippin:
                yield {"case": "start", "health": json.loads(pippin.get("/health"))["details"]}
                yield from _SERVED[self.part][0](Bench(pippin, self.sizes, ends_at))
        else:
            if self.part == "prefill":
                yield self._prefill_alone(folder, ends_at)
            with run(server, "mlx_lm", "server", "--model", str(folder)) as peer:
                sizes = dataclasses.replace(self.sizes, rounds=1)  # it takes its time
                yield from _SERVED[self.part][0](Bench(peer, sizes, ends_at))

    def _prefill_alone(self, folder: Path, ends_at: float) -> Row:
        length = self.sizes.prefill
        printed = subprocess.run(
            [sys.executable, str(_HERE / "mlx_lm_prefill.py"), str(folder), str(length)],
            stdout=subprocess.PIPE,
            check=True,
            timeout=ends_at - time.monotonic(),
        ).stdout
        return {"server": "mlx_lm alone", "case": f"{length} tokens", **json.loads(printed)}

    def _workloads(self, folder: Path) -> dict[str, Callable[..., Jobs]]:
        size = self.sizes.repeated
        fresh = partial(make_jobs, num_tokens=size, max_tokens=size)
        if self.args.model:
            return {
                "edit": partial(edit_jobs, num_lines=size // 12, max_tokens=size),
                "fresh": fresh,
            }
        cycle = read_cycle(folder / "tokenizer.json")
        repeat = partial(repeat_jobs, cycle=cycle, num_words=size, max_tokens=size)
        return {
            "edit": partial(repeat, every=48),  # near to 6 tokens a step, of at most 9
            # Three tokens make a draft, and its first is always wrong.
            "misleading": partial(repeat, every=4),
            "fresh": fresh,
        }

    def _kernel_rows(self) -> Iterator[Row]:
        for script, *options in _KERNEL_SCRIPTS:
            row: Row = {"case": script}
            log = self.args.logs / f"{script}.log"
            with log.open("w") as sink:
                try:
                    subprocess.run(
                        [sys.executable, str(_HERE / script), *options],
                        stdout=sink,
                        stderr=sink,
                        check=True,
                        timeout=max(1.0, self.ends_at - time.monotonic()),
                    )
                except subprocess.SubprocessError as error:
                    row["error"] = _reason(error)
            row["output"] = log.read_text(encoding="utf-8").splitlines()
            say("\n".join(row["output"]))
            yield row


def add_ratios(rows: Sequence[Row], figure: str) -> None:
    """Put pippin's figure by the greatest of the others into its rows."""
    others: dict[tuple[str, str], float] = {}
    for row in rows:
        if row.get(figure) and row["server"] != "pippin":
            key = row["model"], row["case"]
            others[key] = max(row[figure], others.get(key, 0.0))
    for row in rows:
        other = others.get((row["model"], row.get("case", "")))
        if other and row.get(figure) and row["server"] == "pippin":
            row["by_peer"] = rounded(row[figure] / other)


def print_table(part: str, rows: Sequence[Row]) -> None:
    """Print whatever is a number or a text."""
    keys = dict.fromkeys(
        key for row in rows for key in row if not isinstance(row[key], dict | list)
    )
    lines = [[*keys], *([_cell(row.get(key)) for key in keys] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    say(f"\n{part}")
    for line in lines:
        say("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text[:_WIDEST]


def _reason(error: Exception) -> str:
    """Without the command that failed and, of a log, all but the last line."""
    first, *rest = str(error).rpartition("]' ")[2].splitlines() or [""]
    return " ".join([first, *rest[-1:]])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", type=_names, default=list(_PARTS), help=", ".join(_PARTS))
    parser.add_argument("--models", type=_names, default=["small", "large"], help="small, large")
    parser.add_argument("--model", type=Path, help="a folder to measure instead")
    parser.add_argument("--peer", choices=["mlx_lm", "none"], default="mlx_lm")
    parser.add_argument("--tokenizer", type=Path, help="folder of the models' tokenizer")
    parser.add_argument("--folder", type=Path, required=True, help="of models and logs")
    parser.add_argument("--output", type=Path, help="file for the JSON; logs go beside it")
    parser.add_argument("--limit", type=float, help="seconds for a part; default: 240, or 120")
    parser.add_argument("--quick", action="store_true", help="half of it")
    parser.add_argument("--tiny", action="store_true", help="a model and lengths for a CPU")
    parser.add_argument("--pippin-args", type=shlex.split, default=[], help="further options")
    args = parser.parse_args()
    if unknown := set(args.part) - set(_PARTS):
        parser.error(f"no such part: {', '.join(unknown)}")
    if args.tokenizer is None and args.model is None and args.part != ["kernel"]:
        parser.error("--tokenizer or --model is needed")
    args.peers = [] if args.peer == "none" else [args.peer]
    args.limit = args.limit or (120.0 if args.quick else 240.0)
    args.sizes = TINY_SIZES if args.tiny else Sizes()
    if args.quick:
        args.sizes = dataclasses.replace(args.sizes, rounds=1, decode=args.sizes.decode // 2)
    if args.tiny or args.model:
        args.models = [args.model.name if args.model else "tiny"]
    args.logs = (args.output.parent if args.output else args.folder) / "logs"
    return args


def _names(text: str) -> list[str]:
    return text.split(",")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("pippin", "mlx", "mlx-lm"):
        # pippin may run from a checkout that is not installed.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def main() -> None:
    """Measure part by part."""
    # An orderly end takes the servers along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = _parse()
    for folder in (args.folder, args.logs):
        folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[Row]] = {}
    about = {"command": shlex.join(["python", *sys.argv]), "versions": _versions()}
    line = ""
    for part in args.part:
        rows = parts[part] = []
        for row in Session(args, part).rows():
            rows.append(row)
            if part in _SERVED:
                add_ratios(rows, _SERVED[part][1])
            line = json.dumps({**about, "parts": parts})
            if args.output:
                args.output.write_text(line + "\n", encoding="utf-8")
        print_table(part, rows)
    print(line)
    if any("error" in row for rows in parts.values() for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
