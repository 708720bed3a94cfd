"""`pippin chat --help` waits for nothing that a conversation needs."""

import json
import subprocess
import sys

HEAVY = ("mlx", "httpx", "rich", "prompt_toolkit", "markdown_it", "transformers", "numpy")


def test_help_loads_nothing_heavy() -> None:
    code = f"""
import json, sys
from pippin.cli.main import app
try:
    app(["chat", "--help"])
except SystemExit as end:
    code = end.code
print(json.dumps([code, sorted(set(sys.modules) & set({HEAVY!r}))]))
"""
    finished = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(finished.stdout.splitlines()[-1]) == [0, []]
