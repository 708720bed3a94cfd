"""How many tokens of an agent's session are prefilled, by pippin and by ``mlx_lm server``.

Run by hand::

    python tests/perf/agent_session.py [--model demo] [--turns 30] [--tokens 12000]

A conversation through chat grows by turns. In each the model says something, greedily and with at
most ``--max-tokens`` tokens; to this a call of a tool is added, which the session has from a
seeded generator, as it has the result that the next turn begins with. In every sixth turn the user
speaks as well. Both servers load the same float32 weights (see ``same_weights.py``) with one chat
template that knows tools, take each turn one after the other, and get back what they themselves
said. Nobody else asks them. The one that is not measured is stopped with SIGSTOP.

Prefilled is what ``usage`` tells, prompt tokens less cached ones; pippin's own counters from
``/metrics`` are printed beside it. New is what stood in no earlier prompt or answer: the last
prompt, less all answers before it. A table goes to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server_process import Server, running, say
from workloads import MODEL_NAME

_HERE = Path(__file__).parent
_MAX_MODEL_LEN = 32768
_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n"
    "{% endfor %}<|im_end|>\n{% endif %}{% for message in messages %}<|im_start|>"
    "{{ message.role }}\n{{ message.content }}{% for call in message.tool_calls or [] %}\n"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": text,
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
        },
    }
    for name, text in (("read", "Reads a file."), ("search", "Looks for a text in a folder."))
]
_TEXT = "def return cache block None self. (tokens) = 0 # import class for in raise [index]"
_WORDS = _TEXT.split()


@dataclass
class Session:
    """One server's conversation, and what it cost."""

    server: Server
    messages: list[dict[str, Any]]
    prompts: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def num_prefilled(self) -> int:
        """Prompt tokens that were computed."""
        return sum(self.prompts) - sum(self.cached)

    @property
    def num_new(self) -> int:
        """Prompt tokens that had to be."""
        return self.prompts[-1] - sum(self.answers[:-1])

    def take(self, new: list[dict[str, Any]], call: dict[str, Any], max_tokens: int) -> None:
        """Let the server say something to what is new, and have it call."""
        self.messages += new
        body = {
            "model": MODEL_NAME,
            "messages": self.messages,
            "tools": _TOOLS,
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        self.server.resume()
        started_at = time.perf_counter()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.server.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as reply:
            told = json.loads(reply.read())
        self.seconds += time.perf_counter() - started_at
        self.server.pause()
        said = told["choices"][0]["message"].get("content") or ""
        self.messages.append({"role": "assistant", "content": said, "tool_calls": [call]})
        usage = told["usage"]
        self.prompts.append(usage["prompt_tokens"])
        self.cached.append((usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0))
        self.answers.append(usage["completion_tokens"])


def run_sessions(servers: list[Server], args: argparse.Namespace) -> list[Session]:
    """Take all turns."""
    rng = random.Random(args.seed)
    rules = "You are a coding agent. Read before you write, and say what you found. " * 20
    sessions = [Session(server, [{"role": "system", "content": rules}]) for server in servers]
    length = 60.0  # of a tool's result, in words
    for turn in range(args.turns):
        new: list[dict[str, Any]] = []
        if turn:
            prompts = sessions[0].prompts
            if turn > 1:  # whatever a word has in tokens
                wanted = (args.tokens - prompts[-1]) / (args.turns - turn)
                length *= min(2.0, max(0.5, wanted / (prompts[-1] - prompts[-2])))
            result = " ".join(rng.choices(_WORDS, k=max(1, int(length * rng.uniform(0.6, 1.4)))))
            new.append({"role": "tool", "tool_call_id": f"call_{turn - 1}", "content": result})
        if turn % 6 == 0:
            new.append({"role": "user", "content": f"Now look at part {turn // 6} of it."})
        arguments = json.dumps({"path": f"src/{rng.choice(_WORDS)}_{turn}.py"})
        function = {"name": "read", "arguments": arguments}
        call = {"id": f"call_{turn}", "type": "function", "function": function}
        for session in sessions:
            session.take(new, call, args.max_tokens)
        say(f"turn {turn + 1}: " + ", ".join(_last(session) for session in sessions))
    return sessions


def _last(session: Session) -> str:
    computed = session.prompts[-1] - session.cached[-1]
    return f"{session.server.name} {computed} of {session.prompts[-1]}"


def computed_by_metrics(server: Server) -> int:
    """What pippin's engine counted, in chunks: all but the last token of each prompt."""
    text = server.get("/metrics")

    def counter(name: str) -> int:
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        assert found is not None, name
        return int(float(found[1]))

    return counter("pippin_prompt_tokens_total") - counter("pippin_prefix_hit_tokens_total")


def make_folder(weights: Path, folder: Path) -> None:
    """The same weights with a template that knows tools, and with a longer context."""
    for path in weights.iterdir():
        if path.suffix == ".safetensors":
            (folder / path.name).symlink_to(path)
        elif path.is_file():
            shutil.copy(path, folder)
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = _MAX_MODEL_LEN
    (folder / "config.json").write_text(json.dumps(config))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="'demo', a folder, a .gguf or a hub id")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=12_000, help="of the last prompt, about")
    parser.add_argument("--max-tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pippin-args", type=shlex.split, default=[], help="further options")
    parser.add_argument("--no-peer", action="store_true", help="pippin alone")
    args = parser.parse_args()
    prepare = [sys.executable, str(_HERE / "same_weights.py"), args.model]
    prepared = subprocess.run(prepare, stdout=subprocess.PIPE, check=False)
    if prepared.returncode:
        sys.exit(prepared.returncode)
    weights = json.loads(prepared.stdout)
    with tempfile.TemporaryDirectory(prefix="agent-session-") as name, contextlib.ExitStack() as up:
        folder, logs = Path(name, "model"), Path(name)
        folder.mkdir()
        make_folder(Path(weights["folder"]), folder)
        ours = ["pippin.cli", "serve", str(folder), "--served-model-name", MODEL_NAME]
        ours += ["--response-store", "off", *args.pippin_args]
        servers = [up.enter_context(running("pippin", ours, log=logs / "pippin"))]
        servers[0].pause()
        if not args.no_peer:
            theirs = ["mlx_lm", "server", "--model", str(folder)]
            preload = {} if not weights["blas_library"] else {"LD_PRELOAD": weights["blas_library"]}
            log = logs / "mlx_lm"
            servers.append(
                up.enter_context(running("mlx_lm", theirs, log=log, environment=preload))
            )
            servers[1].pause()
        sessions = run_sessions(servers, args)
        servers[0].resume()
        counted = computed_by_metrics(servers[0]) + args.turns
    print("| server | last prompt | answers | new | prefilled | ratio | wall, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for session in sessions:
        print(
            f"| {session.server.name} | {session.prompts[-1]} | {sum(session.answers)} "
            f"| {session.num_new} | {session.num_prefilled} "
            f"| {session.num_prefilled / session.num_new:.3f} | {session.seconds:.1f} |"
        )
    print(f"pippin's own count: {counted}")


if __name__ == "__main__":
    main()
