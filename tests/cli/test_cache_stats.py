"""What is read off a server's metrics."""

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from pippin.cli.cache_stats import read_metrics, run_stats
from pippin.core.errors import PippinError

PAGE = """\
# TYPE pippin_prefix_query_tokens counter
pippin_prefix_query_tokens_total 200.0
# TYPE pippin_prefix_hit_tokens counter
pippin_prefix_hit_tokens_total 150.0
# TYPE pippin_kv_blocks gauge
pippin_kv_blocks{state="free"} 7.0
# TYPE pippin_steps counter
pippin_steps_total 9.0
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total 150.0
"""
EXPECTED = {
    "prefix_query_tokens": 200.0,
    "prefix_hit_tokens": 150.0,
    "kv_blocks[free]": 7.0,
    "prefix_hit_rate": 0.75,
}


class Answers(http.server.BaseHTTPRequestHandler):
    """A server as far as this command looks."""

    def do_GET(self) -> None:
        self.send_response(503 if self.path == "/health" else 200)
        self.end_headers()
        self.wfile.write((PAGE if self.path == "/metrics" else '{"model": "m"}').encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_metrics_of_caches_are_picked_out() -> None:
    assert read_metrics(PAGE) == EXPECTED
    assert read_metrics("") == {}


def test_a_server_is_asked(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_stats(url, api_key="k", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"model": "m", **EXPECTED}
    run_stats(url, api_key=None, as_json=False)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        *(["model", "m"], ["prefix_query_tokens", "200"], ["prefix_hit_tokens", "150"]),
        *(["kv_blocks[free]", "7"], ["prefix_hit_rate", "0.75"]),
    ]


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense", "http://["])
def test_nobody_there_is_one_line(address: str) -> None:
    with pytest.raises(PippinError, match="no pippin server answers"):
        run_stats(address, api_key=None, as_json=False)
