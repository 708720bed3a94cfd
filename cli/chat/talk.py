"""A conversation under way: what was said, what is about to be, and how a turn goes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, TypeVar

from pippin.core.errors import PippinError

from .attachments import Attachment
from .backend import ChatBackend, Usage
from .reply import Reply, follow_reply
from .reply_view import make_view
from .screen import Screen
from .session import Session, Turn
from .session_files import SessionFiles

_Result = TypeVar("_Result")
_AUTOSAVE_S = 5.0


@dataclass(slots=True)
class Draft:
    """The message that is about to be sent.

    Attributes:
        keeps: Of the turns, how many stay when it is sent; ``None`` for all. What it takes the
            place of is there until then.
    """

    text: str = ""
    attachments: list[Attachment] = field(default_factory=list)
    keeps: int | None = None


class Talk:
    """One conversation. All errors it raises are `PippinError`, and leave it as it was."""

    def __init__(
        self,
        backend: ChatBackend,
        session: Session,
        screen: Screen,
        files: SessionFiles,
        runner: asyncio.Runner,
    ) -> None:
        self.backend = backend
        self.screen = screen
        self.files = files
        self.draft = Draft()
        self.saved_as = ""
        self.last_usage: Usage | None = None
        self._runner = runner
        self.resume(session)

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Wait for something; Ctrl-C cancels it."""
        return self._runner.run(work)

    def resume(self, session: Session) -> None:
        """Go on with another conversation."""
        self.session, self.draft, self.last_usage = session, Draft(), None
        if session.turns and session.turns[-1].role == "user":
            # It was saved before the answer came.
            *turns, last = session.turns
            session.turns = tuple(turns)
            self.draft = Draft(last.text, list(last.attachments))

    def send(self, text: str) -> Reply:
        """Send a message, the draft's attachments with it, and show the answer.

        If nothing comes, the message is the draft again.
        """
        self.draft.text = text
        turns = self.session.turns[: self.draft.keeps]
        turn = Turn("user", text, attachments=tuple(self.draft.attachments))
        return self._ask((*turns, turn))

    def retry(self) -> Reply:
        """Send the message that had no answer; or have the last one answered again."""
        if self.draft.text or self.draft.attachments:
            return self.send(self.draft.text)
        return self._ask(self.session.turns[: self._last_message() + 1])

    def reopen(self) -> None:
        """Make the last message the draft, unless there is one."""
        if not self.draft.text:
            number = self._last_message()
            last = self.session.turns[number]
            self.draft = Draft(last.text, list(last.attachments), keeps=number)

    def drop_draft(self) -> None:
        """Keep what the draft was to take the place of."""
        self.draft = Draft(attachments=self.draft.attachments if self.draft.keeps is None else [])

    def autosave(self, turns: tuple[Turn, ...]) -> None:
        """Save the conversation as far as it has come; say so if that fails."""
        try:
            self.saved_as = self.files.autosave(replace(self.session, turns=turns))
        except PippinError as error:
            self.screen.complain(str(error))

    def _last_message(self) -> int:
        turns = self.session.turns
        numbers = [number for number, turn in enumerate(turns) if turn.role == "user"]
        if not numbers:
            raise PippinError("there is no message yet")
        return numbers[-1]

    def _ask(self, turns: tuple[Turn, ...]) -> Reply:
        session = self.session
        session.model = self.backend.model
        self.autosave(turns)
        saved_at = monotonic()

        def save_now_and_then(reply: Reply) -> None:
            nonlocal saved_at
            if monotonic() - saved_at >= _AUTOSAVE_S:
                self.autosave((*turns, _answer(reply)))
                saved_at = monotonic()

        events = self.backend.ask(session.messages(turns), session.settings)
        with self.screen.quiet_keys(), make_view(self.screen) as view:
            reply = self.run(follow_reply(events, view, on_progress=save_now_and_then))
        if not reply.is_empty or reply.is_whole:
            session.turns = (*turns, _answer(reply))
            self.draft, self.last_usage = Draft(), reply.usage
            self.autosave(session.turns)
        return reply


def _answer(reply: Reply) -> Turn:
    return Turn("assistant", reply.text, reply.reasoning)
