"""A server answers: any that speaks OpenAI's chat API.

Source: platform.openai.com/docs/api-reference/chat/create.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx

from pippin.core.errors import ConfigError, PippinError

from .backend import Delta, End, Settings, WireMessages
from .wire_events import WireEvents, error_text

_CONNECT_S = 10.0
# Of silence: a long prompt may take minutes, and Ctrl-C is at hand.
_TIMEOUT_S = 3600.0
_REFUSED = (400, 422)
_NO_LIST = (404, 405, 501)
_LOCAL = ("localhost", "127.0.0.1", "::1")


class ServerBackend:
    """A `ChatBackend` of a server. Make one with `connect`."""

    def __init__(self, client: httpx.AsyncClient, model: str | None) -> None:
        self._client = client
        self._model = model or ""
        self._lengths: dict[str, object] = {}
        # What this server has been found not to know.
        self._without_usage = False
        self._new_max_tokens = False

    @classmethod
    async def connect(cls, url: str, api_key: str | None, model: str | None) -> ServerBackend:
        """Look whether the server is there, and what it has.

        Args:
            url: With or without the path of the API; ``/v1`` if there is none.
            model: ``None`` for the first that the server lists.

        Raises:
            ConfigError: `url` is no address.
            PippinError: Nobody answers, the key is refused, or there is no model.
        """
        base_url = _base_url(url)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        client = httpx.AsyncClient(
            base_url=base_url,
            headers=headers,
            timeout=httpx.Timeout(_TIMEOUT_S, connect=_CONNECT_S),
            # A proxy of the environment does not reach this machine.
            trust_env=base_url.host not in _LOCAL,
            follow_redirects=True,
        )
        backend = cls(client, model)
        try:
            await backend._list_models()
        except BaseException:
            await client.aclose()
            raise
        return backend

    @property
    def model(self) -> str:
        """As it is named to the server."""
        return self._model

    @property
    def max_model_len(self) -> int | None:
        """If the server's list says it."""
        length = self._lengths.get(self._model)
        return length if isinstance(length, int) else None

    async def ask(
        self, messages: WireMessages, settings: Settings
    ) -> AsyncGenerator[Delta | End, None]:
        """See `ChatBackend.ask`."""
        async with self._asked(messages, settings) as reply:
            # A server may not know how to stream.
            is_stream = "json" not in reply.headers.get("content-type", "")
            events = WireEvents(is_stream=is_stream)
            async for part in reply.aiter_bytes() if is_stream else _once(reply):
                for delta in events.feed(part):
                    yield delta
            yield events.end()

    async def count_tokens(self, messages: WireMessages, settings: Settings) -> int | None:
        """By ``/tokenize``, which pippin and vLLM have."""
        path = self._client.base_url.path.rstrip("/").removesuffix("/v1") + "/tokenize"
        body = {"model": self._model, "messages": messages, **_template_kwargs(settings)}
        with _named(self._client):
            reply = await self._client.post(self._client.base_url.copy_with(path=path), json=body)
        try:
            count = reply.json()["count"] if reply.is_success else None
        except (ValueError, TypeError, KeyError):  # something else lives under that path
            count = None
        return count if isinstance(count, int) else None

    def known_models(self) -> Sequence[str]:
        """Those that the server lists."""
        return tuple(self._lengths)

    async def switch(self, model: str) -> None:
        """Name another model; whether it is there shows with the next answer."""
        self._model = model

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _list_models(self) -> None:
        with _named(self._client):
            reply = await self._client.get("models")
        if self._model and reply.status_code in _NO_LIST:
            return
        listed = _parse(_checked(reply).content).get("data")
        for entry in listed if isinstance(listed, list) else ():
            if isinstance(entry, dict):
                self._lengths[str(entry.get("id"))] = entry.get("max_model_len")
        self._model = self._model or next(iter(self._lengths), "")
        if not self._model:
            raise PippinError(f"{self._client.base_url} lists no model; name one")

    @asynccontextmanager
    async def _asked(
        self, messages: WireMessages, settings: Settings
    ) -> AsyncIterator[httpx.Response]:
        """The answer's head; asks again without what the server does not know."""
        while True:
            body = self._body(messages, settings)
            with _named(self._client):
                async with self._client.stream("POST", "chat/completions", json=body) as reply:
                    if reply.is_success:
                        yield reply
                        return
                    await reply.aread()
            if not self._adapt(reply, body):
                _checked(reply)

    def _body(self, messages: WireMessages, settings: Settings) -> dict[str, Any]:
        renamed = {"thinking_budget": "thinking_token_budget"}
        if self._new_max_tokens:
            renamed["max_tokens"] = "max_completion_tokens"
        sent = {renamed.get(name, name): value for name, value in settings.items()}
        sent.pop("thinking", None)
        if not self._without_usage:
            sent["stream_options"] = {"include_usage": True}
        return {
            "model": self._model,
            "messages": messages,
            "stream": True,
            **sent,
            **_template_kwargs(settings),
        }

    def _adapt(self, reply: httpx.Response, body: dict[str, Any]) -> bool:
        """Whether the request can be made in a way that this server may know."""
        if reply.status_code not in _REFUSED:
            return False
        if "stream_options" in reply.text and not self._without_usage:
            self._without_usage = True
        elif "max_completion_tokens" in reply.text and "max_tokens" in body:
            self._new_max_tokens = True
        else:
            return False
        return True


def _base_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"'{url}' is no address of a server; write it like http://127.0.0.1:8000")
    return parsed if parsed.path.rstrip("/") else parsed.copy_with(path="/v1")


async def _once(reply: httpx.Response) -> AsyncIterator[bytes]:
    yield await reply.aread()


@contextmanager
def _named(client: httpx.AsyncClient) -> Iterator[None]:
    """Say which server it was that did not answer."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise PippinError(f"{client.base_url} does not answer in time") from error
    except httpx.ConnectError as error:
        raise PippinError(f"{client.base_url} cannot be reached: {error}") from error
    except httpx.HTTPError as error:
        raise PippinError(
            f"{client.base_url} broke off: {error or type(error).__name__}"
        ) from error


def _checked(reply: httpx.Response) -> httpx.Response:
    if reply.is_success:
        return reply
    try:
        reason = error_text(json.loads(reply.content))
    except ValueError:
        reason = error_text(reply.text) or reply.reason_phrase
    hint = "; --api-key gives a key" if reply.status_code == httpx.codes.UNAUTHORIZED else ""
    raise PippinError(f"the server refused it ({reply.status_code}): {reason}{hint}")


def _parse(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise PippinError("the server answers something else than OpenAI's API does")
    return body


def _template_kwargs(settings: Settings) -> dict[str, Any]:
    if "thinking" not in settings:
        return {}
    return {"chat_template_kwargs": {"enable_thinking": settings["thinking"]}}
