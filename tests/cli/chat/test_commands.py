"""Every slash command, on a conversation with a scripted partner."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path

import pytest

from pippin.cli.chat.backend import Delta, End, Settings, Usage, WireMessages
from pippin.cli.chat.commands import Commands, LeaveChat
from pippin.cli.chat.run import converse
from pippin.cli.chat.screen import Screen
from pippin.cli.chat.session import Session, Turn
from pippin.cli.chat.session_files import SessionFiles
from pippin.cli.chat.talk import Talk
from pippin.core.errors import PippinError


class FakeBackend:
    """Says its answers one after another; an exception among them is raised."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[WireMessages] = []
        self.settings: list[Settings] = []
        self.model = "fake"
        self.max_model_len: int | None = 1000
        self.count: int | None = 250

    async def ask(
        self, messages: WireMessages, settings: Settings
    ) -> AsyncGenerator[Delta | End, None]:
        self.asked.append(messages)
        self.settings.append(dict(settings))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        yield Delta("hm", is_reasoning=True)
        yield Delta(answer)
        yield End("stop", Usage(prompt_tokens=20, output_tokens=10))

    async def count_tokens(self, messages: WireMessages, settings: Settings) -> int | None:
        return self.count

    def known_models(self) -> Sequence[str]:
        return ("fake", "other")

    async def switch(self, model: str) -> None:
        if model == "gone":
            raise PippinError("no model 'gone'")
        self.model = model

    async def close(self) -> None:
        pass


class Chat:
    """A conversation without a terminal."""

    def __init__(self, backend: FakeBackend, runner: asyncio.Runner) -> None:
        self.backend = backend
        self.files = SessionFiles()
        self.talk = Talk(backend, Session(), Screen(), self.files, runner)
        self.commands = Commands(self.talk)

    def __call__(self, *lines: str) -> None:
        for line in lines:
            assert self.commands.try_run(line)

    def say(self, text: str) -> None:
        self.commands.tell(self.talk.send(text))

    @property
    def texts(self) -> list[str]:
        return [turn.text for turn in self.talk.session.turns]


@pytest.fixture
def chat() -> Iterator[Chat]:
    with asyncio.Runner() as runner:
        yield Chat(FakeBackend("one", "two", "three", "four"), runner)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What people were told since the last look; lines are not folded where there is no screen."""
    return capsys.readouterr().err


def test_a_conversation_goes_on_and_saves_itself(chat: Chat) -> None:
    chat.say("a")
    chat.say("b")
    assert chat.backend.asked[1] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "b"},
    ]
    saved = SessionFiles().load(chat.talk.saved_as)
    assert saved == chat.talk.session
    assert saved.turns[1] == Turn("assistant", "one", "hm")


def test_a_message_is_saved_before_its_answer(chat: Chat) -> None:
    chat.say("a")
    chat.backend.answers[0] = RuntimeError("a crash")
    with pytest.raises(RuntimeError):
        chat.say("b")
    loaded = SessionFiles().load(chat.talk.saved_as)
    assert loaded.turns[-1] == Turn("user", "b")
    chat.talk.resume(loaded)
    assert (chat.texts, chat.talk.draft.text) == (["a", "one"], "b")


def test_system_goes_before_everything_and_off_takes_it_away(
    chat: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    chat("/system", "/system Be\nbrief.", "/system")
    assert said(capsys) == "no system prompt\n" + "system: Be\nbrief.\n" * 2
    chat.say("a")
    chat("/system off")
    chat.say("b")
    assert chat.backend.asked[0][0] == {"role": "system", "content": "Be\nbrief."}
    assert chat.backend.asked[1][0] == {"role": "user", "content": "a"}


def test_set_shows_sets_and_undoes(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat("/set temperature 0.5", "/set top-k=4", "/set stop a b", "/set thinking off", "/set seed")
    assert said(capsys).splitlines() == [
        "temperature: 0.5",
        "top_k: 4",
        'stop: ["a b"]',
        "thinking: off",
        "seed: the model's default",
    ]
    chat("/set top_k off", "/set thinking default", "/set stop default", "/set")
    assert "temperature         0.5" in said(capsys)
    chat.say("a")
    assert chat.backend.settings == [{"temperature": 0.5}]
    for line, reason in (("/set heat 3", "no setting 'heat'"), ("/set seed x", "whole number")):
        with pytest.raises(PippinError, match=reason):
            chat(line)


def test_files_go_with_the_next_message_only(
    chat: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "a.wav").write_bytes(b"RIFF\x00\x00\x00\x00WAVE")
    chat(f"/file {tmp_path}/a.txt", f"/image {tmp_path}/a.png", f"/audio {tmp_path}/a.wav")
    chat("/image")
    assert said(capsys).splitlines()[-2:] == [
        "a.wav goes with the next message",
        "no image goes with the next message",
    ]
    chat.say("look")
    chat.say("again")
    content = chat.backend.asked[0][0]["content"]
    assert [part["type"] for part in content] == ["text", "input_audio", "text"]
    assert chat.backend.asked[1][0]["content"] == content
    assert chat.backend.asked[1][2] == {"role": "user", "content": "again"}
    with pytest.raises(PippinError, match="cannot be read"):
        chat("/image gone.png")


def test_a_refused_message_is_kept_with_what_goes_along(
    chat: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    chat.backend.answers[0] = PippinError("this model takes no images")
    chat(f"/image {tmp_path}/a.png")
    chat.say("look")
    assert "this model takes no images\nyour message is kept: /retry" in said(capsys)
    assert (chat.texts, chat.talk.draft.text) == ([], "look")
    chat("/image", "/retry")
    assert chat.texts == ["look", "two"]
    assert chat.backend.asked[1] == [{"role": "user", "content": "look"}]
    assert chat.talk.draft.text == ""


def test_retry_draws_the_last_answer_again(chat: Chat) -> None:
    with pytest.raises(PippinError, match="no message yet"):
        chat("/retry")
    chat.say("a")
    chat("/retry")
    assert chat.texts == ["a", "two"]
    assert chat.backend.asked[0] == chat.backend.asked[1]


def test_a_retry_that_fails_keeps_the_old_answer(chat: Chat) -> None:
    chat.say("a")
    chat.backend.answers[0] = PippinError("no")
    chat("/retry")
    assert chat.texts == ["a", "one"]


def test_edit_replaces_the_last_message_only_when_it_is_sent(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    editor = tmp_path / "my editor.sh"
    editor.write_text("#!/bin/sh\nprintf ' and more\\n\\n' >> \"$1\"\n", encoding="utf-8")
    editor.chmod(0o700)
    chat.say("a")
    chat.say("b")
    with pytest.raises(PippinError, match="set EDITOR"):
        chat("/edit")
    monkeypatch.setenv("EDITOR", f"'{editor}'")
    chat("/edit")
    assert chat.texts == ["a", "one", "b", "two"]
    chat("/retry")
    assert chat.texts == ["a", "one", "b and more", "three"]
    monkeypatch.setenv("EDITOR", "false")
    with pytest.raises(PippinError, match="the editor 'false' failed"):
        chat("/edit")


def test_a_draft_that_is_wiped_out_changes_nothing(chat: Chat) -> None:
    chat.say("a")
    chat.talk.reopen()
    assert chat.talk.draft.text == "a"
    chat.talk.drop_draft()
    chat.say("b")
    assert chat.texts == ["a", "one", "b", "two"]


def test_model_shows_and_switches(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat("/model", "/model other", "/model unlisted")
    assert said(capsys).splitlines() == [
        "model: fake",
        "others: other",
        "model: other",
        "model: unlisted",
        "it is not among those that the server lists",
    ]
    with pytest.raises(PippinError, match="no model 'gone'"):
        chat("/model gone")
    assert chat.backend.model == "unlisted"


def test_tokens_are_counted_or_taken_from_the_last_answer(
    chat: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    chat("/tokens")
    chat.say("a")
    chat("/tokens")
    chat.backend.count = None
    chat("/tokens")
    chat.backend.max_model_len = None
    chat("/tokens")
    lines = [line for line in said(capsys).splitlines() if "tokens" in line and "TTFT" not in line]
    assert lines == [
        "0 tokens: nothing was said yet",
        "250 tokens of 1,000 (25%)",
        "30 tokens of 1,000 (3%), as the last answer's usage says",
        "30 tokens, as the last answer's usage says",
    ]
    chat("/model other")
    with pytest.raises(PippinError, match="neither counts tokens"):
        chat("/tokens")


def test_save_load_and_clear(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat("/set seed 1", "/load")
    chat.say("a")
    first = chat.talk.saved_as
    chat("/save mine", "/clear")
    assert (chat.texts, chat.talk.session.settings) == ([], {"seed": 1})
    chat.say("b")
    assert chat.talk.saved_as != first
    capsys.readouterr()
    chat("/load mine")
    assert said(capsys) == "> a\none\nmine: 2 turns, last with fake\n"
    assert chat.texts == ["a", "one"]
    chat("/load")
    assert "mine" in said(capsys)
    for line, reason in (("/save", "needs a name"), ("/load gone", "no session 'gone'")):
        with pytest.raises(PippinError, match=reason):
            chat(line)
    assert SessionFiles().load(first).turns[0] == Turn("user", "a")


def test_help_names_every_command(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat("/help")
    shown = said(capsys)
    assert [name for name in chat.commands.commands() if f"{name} " not in shown] == []


@pytest.mark.parametrize("line", ["/usr/bin is a path", "// text", "1/2", "text /help", "/2 of it"])
def test_what_is_no_command_is_a_message(chat: Chat, line: str) -> None:
    assert not chat.commands.try_run(line)


def test_unknown_commands_and_odd_arguments_are_refused(chat: Chat) -> None:
    for line, reason in (
        ("/hlep", "did you mean /help"),
        ("/xyzzy now", "no command /xyzzy; /help lists them"),
        ("/", "no command /"),
        ("/retry now", "/retry takes nothing behind it"),
    ):
        with pytest.raises(PippinError, match=reason):
            chat(line)
    with pytest.raises(LeaveChat):
        chat("/quit")


def test_completions_know_what_may_follow(chat: Chat) -> None:
    chat("/save mine")
    assert set(chat.commands.commands()) > {"/image", "/file", "/audio", "/set", "/retry", "/edit"}
    assert [*(chat.commands.arguments("/load") or ())] == ["mine"]
    assert "top_p" in (chat.commands.arguments("/set") or ())
    assert [*(chat.commands.arguments("/model") or ())] == ["fake", "other"]
    assert chat.commands.arguments("/file") is None
    assert chat.commands.arguments("/clear") == ()


def test_lines_of_a_plain_terminal_are_a_conversation(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["/nope\n", "a\\\n", "b\n", "\n", "//path\n", ""])
    monkeypatch.setattr(sys.stdin, "readline", lambda: next(lines))
    converse(chat.talk, loaded=None)
    out, err = capsys.readouterr()
    assert chat.texts == ["a\nb", "one", "/path", "two"]
    assert out == "one\ntwo\n"
    assert "no command /nope" in err
    assert f"pippin chat --load {chat.talk.saved_as}" in err
    assert "\x1b" not in out + err
