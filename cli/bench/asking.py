"""Sends the turns of a session and measures each."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from .answer import Answer, StreamReader, check_status, read_embeddings
from .http_client import HttpClient, RequestFailedError
from .plan import Endpoint, Workload
from .sessions import Session, encode_body


class Asker:
    """Asks one model of one server.

    Args:
        workload: With `Workload.ignore_eos` settled.
    """

    def __init__(self, client: HttpClient, workload: Workload, model: str) -> None:
        self._client = client
        self._workload = workload
        self._model = model
        self._path = f"/v1{workload.endpoint.path}"

    async def ask(self, session: Session) -> AsyncIterator[Answer]:
        """Yield an answer for each turn, which ends at the first failure."""
        messages: list[dict[str, Any]] = []
        for number, turn in enumerate(session, start=1):
            messages += turn.messages
            is_last = number == len(session)
            answer = await self.ask_once(
                messages, turn.max_tokens, label=turn.label, keep_text=not is_last
            )
            messages.append({"role": "assistant", "content": answer.text})
            yield answer
            if answer.failure:
                return

    async def ask_once(
        self,
        messages: Sequence[dict[str, Any]],
        max_tokens: int | None,
        *,
        label: str = "",
        keep_text: bool = False,
    ) -> Answer:
        """Send one request."""
        body = encode_body(self._workload, self._model, messages, max_tokens)
        answer = Answer(label, started_at=time.perf_counter())
        is_stream = self._workload.endpoint is not Endpoint.EMBEDDINGS
        reader = StreamReader(answer, keep_text=keep_text) if is_stream else None
        try:
            response = await self._client.exchange(
                "POST", self._path, body=body, on_part=reader.feed if reader else None
            )
            answer.ended_at = response.ended_at
            check_status(response)
        except RequestFailedError as error:
            answer.fail(error)
            answer.ended_at = answer.ended_at or time.perf_counter()
        else:
            if reader is not None:
                reader.close()
            else:
                read_embeddings(answer, response, len(messages))
        return answer
