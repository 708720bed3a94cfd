"""What `pippin chat` does once its options are known."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import typer

from pippin.core.config import EngineConfig
from pippin.core.errors import ConfigError, PippinError
from pippin.core.models.source import DEMO

from ..console import set_up_logging
from ..errors import INTERRUPTED
from .attachments import Kind, read_attachment
from .backend import ChatBackend, Delta, End, Settings
from .commands import Commands, LeaveChat
from .line_editor import FullEditor, LineEditor, PlainEditor
from .remote import ServerBackend
from .reply import follow_reply
from .reply_view import make_view
from .screen import Screen, is_piped
from .session import Session, Turn
from .session_files import SessionFiles
from .talk import Talk


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """What the command line says.

    Attributes:
        model: ``None`` for the server's first.
        engine: Of a model in this process; ``None`` with a server.
        prompt: The one message; ``None`` for a conversation, or for what comes over stdin.
        system: ``None`` keeps that of the loaded session.
        load: Name of a session.
        attached: Kinds and paths.
    """

    model: str | None
    url: str | None
    api_key: str | None
    engine: EngineConfig | None
    prompt: str | None
    system: str | None
    load: str | None
    settings: Settings
    attached: tuple[tuple[Kind, str], ...]
    as_json: bool


def run_chat(request: ChatRequest) -> None:
    """Answer one prompt, or converse until the user leaves.

    Raises:
        PippinError: Something is wrong from the start, or the one prompt has no answer.
    """
    try:
        _run(request)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _run(request: ChatRequest) -> None:
    screen, files = Screen(), SessionFiles()
    # What can be checked is, before minutes may go into a model.
    prompt = _one_prompt(request)
    session = files.load(request.load) if request.load is not None else Session()
    session.settings |= request.settings
    session.system = session.system if request.system is None else request.system
    attached = [read_attachment(kind, where) for kind, where in request.attached]
    set_up_logging(screen.talk, "warning")
    with asyncio.Runner() as runner:
        backend = runner.run(_open(request, screen))
        try:
            if prompt is None:
                talk = Talk(backend, session, screen, files, runner)
                talk.draft.attachments += attached
                converse(talk, loaded=request.load)
            else:
                turn = Turn("user", prompt, attachments=tuple(attached))
                messages = session.messages((*session.turns, turn))
                events = backend.ask(messages, session.settings)
                _answer(events, backend.model, screen, runner, as_json=request.as_json)
        finally:
            runner.run(backend.close())


async def _open(request: ChatRequest, screen: Screen) -> ChatBackend:
    if request.url is not None:
        return await ServerBackend.connect(request.url, request.api_key, request.model)
    assert request.engine is not None
    # mlx and transformers take their second, which a server's client need not wait for.
    from .local import LocalBackend

    local = LocalBackend(request.engine, screen)
    await local.switch(request.model or DEMO)
    return local


def _answer(
    events: AsyncGenerator[Delta | End, None],
    model: str,
    screen: Screen,
    runner: asyncio.Runner,
    *,
    as_json: bool,
) -> None:
    with make_view(screen) if not as_json else _NoView() as view:
        reply = runner.run(follow_reply(events, view))
    if reply.error is not None:
        raise reply.error
    if not reply.is_whole:
        raise typer.Exit(INTERRUPTED)
    if as_json:
        print(json.dumps(reply.to_json(model), ensure_ascii=False, indent=2))
    else:
        screen.say(reply.stats_line())


def converse(talk: Talk, *, loaded: str | None) -> None:
    """Read and answer until the user leaves."""
    screen, commands = talk.screen, Commands(talk)
    editor: LineEditor = FullEditor(commands) if screen.can_edit else PlainEditor()
    length = talk.backend.max_model_len
    context = f" · {length:,} tokens of context" if length else ""
    screen.say(f"{talk.backend.model}{context} · /help lists commands")
    if loaded is not None:
        commands.show_session(loaded)
    while True:
        names = ", ".join(attached.name for attached in talk.draft.attachments)
        try:
            line = editor.read(f"[{names}] > " if names else "> ", talk.draft.text)
            if not line.strip():
                if screen.can_edit:  # else it was not there to be wiped out
                    talk.drop_draft()
            elif not commands.try_run(line):
                message = line[1:] if line.startswith("//") else line
                commands.tell(talk.send(message))
        except (EOFError, LeaveChat):
            break
        except PippinError as error:
            screen.complain(str(error))
        except KeyboardInterrupt:
            screen.say("interrupted")
    if talk.saved_as:
        screen.say(f"pippin chat --load {talk.saved_as} goes on with this conversation")


def _one_prompt(request: ChatRequest) -> str | None:
    """The message, if there is to be one only: that of the command line behind that of stdin."""
    piped = _read_stdin() if is_piped() else None
    if request.prompt is None and piped is None:
        if request.as_json:
            raise ConfigError("--json is for one answer: give --prompt, or text on stdin")
        return None
    prompt = "\n\n".join(text for text in (piped, request.prompt) if text and text.strip())
    if not prompt and not request.attached:
        raise ConfigError("there is nothing to ask: the prompt is empty")
    return prompt


def _read_stdin() -> str:
    if sys.stdin is None:
        return ""
    try:
        return sys.stdin.buffer.read().decode().rstrip("\n")
    except UnicodeDecodeError as error:
        raise PippinError("stdin is no text in UTF-8") from error


class _NoView:
    def __enter__(self) -> _NoView:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def feed(self, delta: Delta) -> None:
        pass

    def refresh(self) -> None:
        pass
