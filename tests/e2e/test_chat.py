"""`pippin chat` as people use it: the real binary, in a terminal and in a pipe."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fake_engine import Fail, FakeEngine, Hold
from live_server import serve
from scripted_model import write_scripted_model
from stub_openai_server import Script, stub_server
from terminal import ALT_ENTER, CTRL_C, CTRL_D, ENTER, TIMEOUT_S, Terminal, terminal

from pippin.cli.chat.session import Turn, read_session
from pippin.core.messages import ChatPrompt
from pippin.core.parsing.events import ReasoningDelta
from pippin.server.config import ServerConfig

PIPPIN = str(Path(sys.executable).with_name("pippin"))
# Of a line of its own: what was typed is drawn again when it is sent.
PROMPT = "\n>"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("PIPPIN_") and name != "PIPPIN_CACHE_DIR":
            monkeypatch.delenv(name)
    for name in ("NO_COLOR", "EDITOR", "VISUAL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIPPIN_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def chat(*args: str, stdin: str | bytes = "", **env: str) -> "subprocess.CompletedProcess[str]":
    finished = subprocess.run(
        [PIPPIN, "chat", *args],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        env={**os.environ, **env},
        timeout=TIMEOUT_S,
        check=False,
    )
    return subprocess.CompletedProcess(
        args, finished.returncode, finished.stdout.decode(), finished.stderr.decode()
    )


def sessions(folder: Path) -> list[tuple[Turn, ...]]:
    files = (folder / "sessions").glob("*.toml")
    return [read_session(path.read_text(encoding="utf-8")).turns for path in files]


def said_to(engine: FakeEngine, number: int = -1) -> list[tuple[str, str]]:
    prompt = engine.submissions[number].prompt
    assert isinstance(prompt, ChatPrompt)
    return [(message.role, message.text) for message in prompt.messages]


# In a terminal.


def test_a_conversation_in_a_terminal(data_folder: Path, tmp_path: Path) -> None:
    engine = FakeEngine([ReasoningDelta("hm\n\n"), "# Head\n\n", "some **bold** text"])
    engine.num_cached_tokens = 3
    (tmp_path / "cat.png").write_bytes(PNG)
    with serve(engine) as server, terminal([PIPPIN, "chat", "--url", server.url]) as screen:
        screen.wait_for("tiny/model · 4,096 tokens of context · /help lists commands")
        screen.wait_for(PROMPT)
        screen.send(f"first{ALT_ENTER}second\\{ENTER}third{ENTER}")
        shown = screen.wait_for("cached 3")
        assert "some bold text" in shown
        assert "\x1b[2mhm" in screen.output  # dim
        assert said_to(engine) == [("user", "first\nsecond\nthird")]

        screen.send("/sys")
        screen.wait_for("show or set the system prompt")
        screen.send(f"\t Be brief{ENTER}")
        screen.wait_for("system: Be brief")
        screen.wait_for(PROMPT)
        screen.send("\x1b[200~pasted\nlines\x1b[201~" + ENTER)
        screen.wait_for("cached 3")
        screen.wait_for(PROMPT)
        assert said_to(engine)[0] == ("system", "Be brief")
        assert said_to(engine)[-1] == ("user", "pasted\nlines")

        screen.send(f"/image {tmp_path}/cat.png{ENTER}")
        screen.wait_for("cat.png goes with the next message")
        screen.wait_for("[cat.png] >")
        screen.send(f"look{ENTER}")
        screen.wait_for("type 'image_url'")
        screen.wait_for("your message is kept")
        screen.wait_for("[cat.png] > look")
        screen.send(f"{CTRL_C}/image{ENTER}")
        screen.wait_for("no image goes")
        screen.wait_for("\n> look")  # still there
        screen.send(f"{CTRL_C}{ENTER}")  # not any more
        screen.wait_for(PROMPT)

        screen.send(f"/edit{ENTER}")
        screen.wait_for("  lines")  # the last message, to be changed
        screen.send(f"!{ENTER}")
        screen.wait_for("cached 3")
        screen.wait_for(PROMPT)
        assert said_to(engine)[1:] == [*said_to(engine, 1)[1:-1], ("user", "pasted\nlines!")]
        screen.send(f"/tokens{ENTER}")
        screen.wait_for(" tokens of 4,096")
        screen.wait_for(PROMPT)
        screen.send(CTRL_D)
        screen.wait_for("pippin chat --load auto-")
        assert screen.wait_for_end() == 0
    [turns] = sessions(data_folder)
    assert [turn.text for turn in turns if turn.role == "user"][-1] == "pasted\nlines!"
    history = data_folder / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert "pasted" in history.read_text(encoding="utf-8")


def test_ctrl_c_stops_the_answer_and_keeps_it(data_folder: Path) -> None:
    engine = FakeEngine(["half an ", "answer\n\nand", Hold(), "never"])
    with serve(engine) as server, terminal([PIPPIN, "chat", "--url", server.url]) as screen:
        screen.wait_for("/help")
        screen.wait_for(PROMPT)
        screen.send(f"go{ENTER}")
        screen.wait_for("half an answer")
        assert not screen.echoes()
        screen.send(f"typed ahead{CTRL_C}")
        screen.wait_for("interrupted")
        assert engine.aborted.wait(TIMEOUT_S)
        screen.wait_for(PROMPT)
        engine.script = ["whole"]
        screen.send(f"next{ENTER}")
        screen.wait_for("whole")
        screen.wait_for(PROMPT)
        assert said_to(engine)[1] == ("assistant", "half an answer\n\nand")
        screen.send(f"unsent{CTRL_C}")  # wipes the line out
        screen.send(CTRL_C)
        assert screen.wait_for_end() == 0
        assert screen.echoes()
    [turns] = sessions(data_folder)
    assert [turn.text for turn in turns][1::2] == ["half an answer\n\nand", "whole"]


def test_a_killed_chat_has_saved_what_was_asked(data_folder: Path) -> None:
    engine = FakeEngine(["some", Hold()])
    with serve(engine) as server:
        with terminal([PIPPIN, "chat", "--url", server.url]) as screen:
            screen.wait_for(PROMPT)
            screen.send(f"an important question{ENTER}")
            screen.wait_for("some")
        # Killed.
        assert sessions(data_folder) == [(Turn("user", "an important question"),)]
        [path] = (data_folder / "sessions").glob("*.toml")
        command = [PIPPIN, "chat", "--url", server.url, "--load", path.stem]
        with terminal(command) as screen:
            screen.wait_for("> an important question")


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_plain_answers_have_no_control_codes(env: dict[str, str]) -> None:
    engine = FakeEngine([ReasoningDelta("hm"), "# Head\n\nsome **bold** text"])
    with (
        serve(engine) as server,
        terminal([PIPPIN, "chat", "--url", server.url], env=env) as screen,
    ):
        screen.wait_for(PROMPT)
        screen.send(f"first\\{ENTER}second{ENTER}")
        start = len(screen.output)
        screen.wait_for("prompt ")
        answer = screen.output[start:]
        answer = answer[answer.index("hm") : answer.index("prompt ")]
        assert "hm\r\n\r\n# Head\r\n\r\nsome **bold** text\r\n" in answer
        assert "\x1b" not in answer
        assert said_to(engine) == [("user", "first\nsecond")]
        screen.wait_for(PROMPT)
        screen.send(CTRL_D)
        assert screen.wait_for_end() == 0
        assert ("\x1b" in screen.output) == ("TERM" not in env)  # a dumb terminal gets none at all


@pytest.mark.parametrize("columns", [60, 200])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    engine = FakeEngine(["word " * 100, "\n\n| a | b |\n|---|---|\n| " + "cell " * 30 + "| 2 |"])
    command = [PIPPIN, "chat", "--prompt", "go"]
    with (
        serve(engine) as server,
        terminal([*command, "--url", server.url], columns=columns) as screen,
    ):
        assert screen.wait_for_end() == 0
        lines = screen.text.replace("\r", "\n").split("\n")
        widths = [len(line) for line in lines]
        assert columns - 12 < max(widths) <= columns


# In a pipe.


def test_a_prompt_and_stdin_make_one_answer_without_control_codes() -> None:
    engine = FakeEngine([ReasoningDelta("hm"), "# Head\n\n", "**bold**"])
    with serve(engine) as server:
        one = chat("--url", server.url, "--prompt", "Summarise", stdin="a text\n")
        whole = chat("--url", server.url, "--system", "Be brief", stdin="all of it\n")
    assert (one.returncode, one.stdout) == (0, "# Head\n\n**bold**\n")
    assert one.stderr.startswith("hm\n\n3 tokens")
    assert "\x1b" not in one.stderr
    assert whole.stdout == one.stdout
    assert said_to(engine, 0) == [("user", "a text\n\nSummarise")]
    assert said_to(engine, 1) == [("system", "Be brief"), ("user", "all of it")]


def test_json_is_one_object_on_stdout() -> None:
    engine = FakeEngine([ReasoningDelta("hm"), "an", "swer"])
    engine.num_cached_tokens = 2
    options = ["--temperature", "0", "--seed", "7", "--max-tokens", "9", "--set", "top-k=4"]
    with serve(engine) as server:
        finished = chat("--url", server.url, "--prompt", "go", "--json", *options)
    assert (finished.returncode, finished.stderr) == (0, "")
    answer = json.loads(finished.stdout)
    assert answer.pop("timings").keys() == {"ttft_s", "total_s", "tokens_per_s"}
    assert answer == {
        "model": "tiny/model",
        "text": "answer",
        "reasoning": "hm",
        "finish_reason": "stop",
        "usage": {
            "prompt_tokens": 9,
            "cached_tokens": 2,
            "output_tokens": 3,
            "reasoning_tokens": 1,
        },
    }
    params = engine.submissions[0].params
    assert (params.temperature, params.seed, params.max_tokens, params.top_k) == (0, 7, 9, 4)


def test_files_go_along_and_a_saved_conversation_goes_on(tmp_path: Path) -> None:
    engine = FakeEngine(["ok"])
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    saved = tmp_path / "saved.toml"
    turns = '[[turns]]\nrole = "user"\ntext = "hi"\n[[turns]]\nrole = "assistant"\ntext = "hello"\n'
    saved.write_text(turns, encoding="utf-8")
    with serve(engine) as server:
        options = ["--file", str(tmp_path / "a.txt"), "--load", str(saved), "--prompt", "so"]
        assert chat("--url", server.url, *options).stdout == "ok\n"
    assert said_to(engine) == [
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", '<file name="a.txt">\ntext\n</file>so'),
    ]


def test_a_key_is_sent_and_a_wrong_one_is_refused() -> None:
    with serve(FakeEngine(["ok"]), ServerConfig(port=0, api_keys=("good",))) as server:
        url = ["--url", server.url, "--prompt", "go"]
        assert chat(*url, PIPPIN_API_KEY="good other").stdout == "ok\n"
        assert chat(*url, OPENAI_API_KEY="good").stdout == "ok\n"
        assert chat(*url, "--api-key", "good", OPENAI_API_KEY="bad").stdout == "ok\n"
        refused = chat(*url, "--api-key", "bad")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("pippin: the server refused it (401): ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "stdin", "said", "code"),
    [
        (["--prompt", "x", "--temperature", "9"], "", "temperature must be at least", 2),
        (["--prompt", "x", "--set", "heat=9"], "", "there is no setting 'heat'", 2),
        (["--prompt", "x", "--kv-bits", "8"], "", "--kv-bits is for a model that is loaded", 2),
        (["--prompt", "x", "--file", "/no/such"], "", "/no/such cannot be read", 1),
        (["--prompt", "x", "--load", "gone"], "", "no session 'gone'", 1),
        (["--prompt", "x"], b"\xff", "stdin is no text in UTF-8", 1),
        (["--prompt", ""], "", "the prompt is empty", 2),
        (["--json"], "", "the prompt is empty", 2),
        (["--prompt", "x"], "", "http://127.0.0.1:1/v1/ cannot be reached", 1),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    args: Sequence[str], stdin: str | bytes, said: str, code: int
) -> None:
    finished = chat("--url", "http://127.0.0.1:1", *args, stdin=stdin)
    assert (finished.returncode, finished.stdout) == (code, "")
    assert said in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_a_failure_in_the_middle_fails_after_what_came() -> None:
    with serve(FakeEngine(["some", Fail("out of memory")])) as server:
        finished = chat("--url", server.url, "--prompt", "x")
        as_json = chat("--url", server.url, "--prompt", "x", "--json")
    assert (finished.returncode, finished.stdout) == (1, "some\n")
    assert finished.stderr == "pippin: the server broke off: out of memory\n"
    assert (as_json.returncode, as_json.stdout) == (1, "")
    with stub_server(Script(num_tokens=4, breaks_after=2)) as stub:
        finished = chat("--url", stub.url, "--prompt", "x")
    assert (finished.returncode, finished.stdout) == (1, "xx\n")
    assert "broke off" in finished.stderr


def test_ctrl_c_ends_one_answer_with_130() -> None:
    engine = FakeEngine(["some", Hold()])
    with serve(engine) as server:
        process = subprocess.Popen(
            [PIPPIN, "chat", "--url", server.url, "--prompt", "x"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.read(4) == b"some"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out, err) == (130, b"\n", b"")


# In this process.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scripts = {"hello": "Hello **you**.", "much": "Na na na. " * 300}
    return write_scripted_model(tmp_path_factory.mktemp("models") / "scripted", scripts)


@pytest.fixture
def local(model: Path, tmp_path: Path) -> Iterator[Terminal]:
    command = [PIPPIN, "chat", str(model), "--kv-disk-size", "off", "--kv-cache-memory", "16MiB"]
    with terminal(command) as screen:
        yield screen


def test_a_model_of_this_process_converses(local: Terminal, model: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(PNG)
    local.wait_for("scripted · ")
    local.wait_for(PROMPT)
    local.send(f"hello{ENTER}")
    assert "Hello you." in local.wait_for("cached 0")
    local.wait_for(PROMPT)
    local.send(f"much{ENTER}")
    local.wait_for("Na na")
    local.send(CTRL_C)
    local.wait_for("interrupted")
    local.wait_for(PROMPT)
    local.send(f"/tokens{ENTER}")
    local.wait_for(" tokens of ")
    local.wait_for(PROMPT)
    local.send(f"/image {tmp_path}/cat.png{ENTER}")
    local.wait_for("[cat.png] >")
    local.send(f"hello{ENTER}")
    local.wait_for("is of type 'image_url', which this model cannot take")
    local.wait_for("[cat.png] > hello")
    local.send(f"{CTRL_C}/image{ENTER}")
    local.wait_for("\n> hello")
    local.send(ENTER)
    local.wait_for("Hello you.")
    local.wait_for(PROMPT)
    local.send(f"/model /no/such{ENTER}")
    local.wait_for("no model '/no/such'")
    local.wait_for(PROMPT)
    local.send(f"/model {model}{ENTER}")
    local.wait_for("model: scripted")
    local.wait_for(PROMPT)
    local.send(f"hello{ENTER}")
    local.wait_for("Hello you.")
    local.send(f"/quit{ENTER}")
    assert local.wait_for_end() == 0


def test_a_model_of_this_process_answers_once(model: Path) -> None:
    finished = chat(str(model), "--kv-disk-size", "off", "--prompt", "hello", "--json")
    answer = json.loads(finished.stdout)
    assert (answer["text"], answer["finish_reason"]) == ("Hello **you**.", "stop")
    assert "loading" in finished.stderr
    wrong = chat("/no/such", "--prompt", "hello")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
