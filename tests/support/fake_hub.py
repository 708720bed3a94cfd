"""A Hugging Face hub of our own on 127.0.0.1, with one repository of one commit.

Small files are kept by git's name of their content, weights by their sha256, as the hub does.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "org/name"
CLOSED = "http://127.0.0.1:9"


@dataclass
class FakeHub:
    """What the server has, what goes wrong, and what it was asked for.

    Attributes:
        error: Status and the hub's code for it, for every question.
        file_error: The same, for files alone: what a gated model answers.
        send_at_most: Bytes of a weight file after which the connection breaks.
        num_breaks: How often it still does.
        stalls: Whether it stays open then, as long as this is set, and nothing comes.
        damaged: Files that arrive with other bytes than the hub says.
        ranges: Headers of questions for a part of a file.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    error: tuple[int, str] | None = None
    file_error: tuple[int, str] | None = None
    send_at_most: int = 0
    num_breaks: int = 0
    stalls: bool = False
    damaged: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)

    def asked_for(self, name: str) -> int:
        """How often a file's bytes were asked for."""
        return sum(path == f"GET {name}" for path in self.asked)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            return self._send(200, b"")
        _, _, name = path.partition(f"/resolve/{COMMIT}/")
        self.hub.asked.append(f"{self.command} {name}" if name else path)
        error = self.hub.error or (self.hub.file_error if name else None)
        if error is not None:
            return self._send(error[0], b"", {"X-Error-Code": error[1]})
        if "/revision/" in path:
            if not path.endswith(("/main", COMMIT)):
                return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return self._send(200, _as_json({"id": REPO, "sha": COMMIT, "siblings": []}))
        if "/tree/" in path:
            return self._send(200, _as_json([_entry(*it) for it in self.hub.files.items()]))
        if name:
            return self._send_file(name)
        return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _send_file(self, name: str) -> None:
        content = self.hub.files[name]
        entry = _entry(name, content)
        headers = {"ETag": f'"{entry["oid"]}"'}
        if "lfs" in entry:
            linked = {"X-Linked-Etag": entry["lfs"]["oid"], "X-Linked-Size": str(len(content))}
            headers |= linked
        if name in self.hub.damaged:
            content = b"?" + content[1:]
        status, start = 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            self.hub.ranges.append(match[0])
            status, start = 206, int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(status, content[start:], headers, breaks="lfs" in entry)

    def _send(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
        *,
        breaks: bool = False,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if breaks and self.hub.num_breaks:
            self.hub.num_breaks -= 1
            self.wfile.write(content[: self.hub.send_at_most])
            while self.hub.stalls:
                time.sleep(0.02)
            self.close_connection = True
            return
        self.wfile.write(content)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    head = f"blob {len(content)}\0".encode()
    oid = hashlib.sha1(head + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "oid": oid, "size": len(content), "path": path}
    if path.endswith(".safetensors"):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry


def _as_json(content: object) -> bytes:
    return json.dumps(content).encode()


@contextmanager
def serve_hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    """Run a hub for as long as the block lasts."""
    hub = FakeHub(files=dict(files))
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
