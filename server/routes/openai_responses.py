"""``/v1/responses``: make one, and come back to what is stored."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, cast
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pippin.core.engine.client import Generation
from pippin.core.errors import (
    ContextLengthError,
    InvalidRequestError,
    PippinError,
    UnsupportedFeatureError,
)
from pippin.core.messages import ChatPrompt
from pippin.core.parsing.reply_reader import ReplyReader
from pippin.core.sampling_params import SamplingParams

from ..adapters.field_names import named_as
from ..adapters.openai_responses import (
    FIELD_NAMES,
    cut_to_fit,
    reply_id_of,
    to_params,
    to_prompt,
    to_rules,
    to_stored_items,
    wants_logprobs,
)
from ..adapters.openai_responses_reply import ResponseReply, echo_of
from ..adapters.openai_responses_tools import all_tools, left_out
from ..errors import ResponseNotFoundError
from ..response_store import Change, ResponseStore, StoredConversation, StoredResponse
from ..schemas.openai_responses import (
    STORED_ITEMS,
    InputFields,
    InputTokensRequest,
    ItemReference,
    ItemWire,
    MessageItem,
    ResponsesRequest,
    StoredItem,
)
from ..schemas.wire_model import parse_body
from ..service import Service, service_of
from ..streaming import GenerationStream, StreamStyle, answer_at_once

logger = logging.getLogger(__name__)

MAX_LISTED_ITEMS = 100


class ResponsesState:
    """What the handlers share.

    Attributes:
        store: ``None`` if nothing is to be stored.
        replies: Those under way, by id.
    """

    def __init__(self, store: ResponseStore | None) -> None:
        self.store = store
        self.replies: WeakValueDictionary[str, ResponseReply] = WeakValueDictionary()


async def create_response(request: Request) -> Response:
    """Answer a conversation."""
    service, state = service_of(request), state_of(request)
    wire = parse_body(ResponsesRequest, await request.body())
    service.check_model(wire.model)
    store = _store_for(wire, state.store)
    earlier = await _earlier_items(wire, state.store)
    items = await resolve_items(wire.input, state.store, "input")
    prompt = to_prompt(wire, [*earlier, *items], len(earlier))
    with named_as(FIELD_NAMES):
        params = to_params(wire, service.engine.model_card)
    head = service.make_reply_head("resp", separator="_")
    echo = echo_of(wire, params, is_stored=store is not None)
    conversation_id = wire.conversation_id
    is_kept = store is not None or conversation_id is not None
    kept_items = to_stored_items(
        items if is_kept else (), head.reply_id, keep_ids=conversation_id is None
    )
    generation = await _submit(service, wire, prompt, params, head.reply_id)

    def keep(response: dict[str, Any]) -> None:
        if store is not None:
            store.keep(StoredResponse(response=response, items=kept_items))
        if conversation_id is not None and response["status"] in ("completed", "incomplete"):
            conversation_store(state.store).keep_items(
                conversation_id, [*kept_items, *response["output"]]
            )

    reply = state.replies[head.reply_id] = ResponseReply(
        head,
        ReplyReader(generation.make_parser(), with_logprobs=wants_logprobs(wire)),
        echo,
        num_prompt_tokens=len(generation.prompt_token_ids),
        with_opaque_reasoning="reasoning.encrypted_content" in (wire.include or ()),
        keep=keep,
        tools=all_tools(wire),
    )
    answer: Response
    if wire.stream:
        answer = _ResponseStream(request, generation, reply, service, reply_id=head.reply_id)
    else:
        answer = await answer_at_once(request, [generation], reply, service, reply_id=head.reply_id)
    for warning in left_out(wire):
        logger.info("tool_left_out request_id=%s %s", request.state.request_id, warning)
        answer.headers.append("pippin-warning", warning)
    return answer


async def count_input_tokens(request: Request) -> Response:
    """How long the prompt is that the same request would run."""
    service, state = service_of(request), state_of(request)
    wire = parse_body(InputTokensRequest, await request.body())
    if wire.model is not None:
        service.check_model(wire.model)
    earlier = await _earlier_items(wire, state.store)
    items = await resolve_items(wire.input or (), state.store, "input")
    prompt = to_prompt(wire, [*earlier, *items], len(earlier))
    with named_as(FIELD_NAMES):
        token_ids = await service.engine.tokenize(prompt)
        if wire.truncation == "auto" and len(token_ids) >= service.engine.model_card.max_model_len:
            token_ids = await service.engine.tokenize(await cut_to_fit(service.engine, prompt, 1))
    return JSONResponse({"object": "response.input_tokens", "input_tokens": len(token_ids)})


async def refuse_compaction(request: Request) -> Response:
    """Refuse: what stands for a conversation there is a model's own, and opaque.

    Raises:
        UnsupportedFeatureError: Always.
    """
    raise UnsupportedFeatureError(
        "This server does not compact conversations: /v1/responses/compact is not supported. "
        "Send a shorter 'input', or 'truncation': 'auto' to /v1/responses."
    )


async def show_response(request: Request) -> Response:
    """A stored response."""
    check_query(request, {"stream": ("false",)})
    return JSONResponse((await _load(request)).response)


async def delete_response(request: Request) -> Response:
    """Forget a stored response."""
    response_id, store = request.path_params["response_id"], state_of(request).store
    await _load(request)  # the id may be a conversation's
    if store is None or not await store.delete(response_id):
        raise ResponseNotFoundError(response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


async def cancel_response(request: Request) -> Response:
    """End a response that is under way, from another connection.

    Raises:
        InvalidRequestError: It has ended.
    """
    response_id = request.path_params["response_id"]
    reply = state_of(request).replies.get(response_id)
    if reply is not None and service_of(request).running.cancel(response_id):
        return JSONResponse(reply.cancel())
    await _load(request)
    raise InvalidRequestError("The response has ended and cannot be cancelled.")


async def list_input_items(request: Request) -> Response:
    """All that a stored response answers, what came before its own input included.

    What came before it in a conversation is to be found there.
    """
    stored = await _load(request)
    chain = await _load_chain(state_of(request).store, stored.response["previous_response_id"])
    return JSONResponse(make_page(request, [*_raw_items(chain), *stored.items]))


def make_page(request: Request, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The part of a list that the query asks for.

    Raises:
        InvalidRequestError: It asks for something else.
    """
    query = request.query_params
    check_query(request, {"after": None, "limit": None, "order": ("asc", "desc")})
    limit = query.get("limit", "20")
    if not (re.fullmatch("[0-9]{1,3}", limit) and 1 <= int(limit) <= MAX_LISTED_ITEMS):
        raise InvalidRequestError(
            f"'limit' must be between 1 and {MAX_LISTED_ITEMS}.", param="limit"
        )
    items = list(items) if query.get("order") == "asc" else list(reversed(items))
    if "after" in query:
        ids = [item["id"] for item in items]
        if query["after"] not in ids:
            raise InvalidRequestError("'after' is the id of none of the items.", param="after")
        items = items[ids.index(query["after"]) + 1 :]
    data = items[: int(limit)]
    return make_list(data, has_more=len(data) < len(items))


def make_list(items: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Items as the API lists them."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else "",
        "last_id": items[-1]["id"] if items else "",
        "has_more": has_more,
    }


class _ResponseStream(GenerationStream):
    """Says that the response exists before the model has read the prompt."""

    def __init__(
        self,
        request: Request,
        generation: Generation,
        reply: ResponseReply,
        service: Service,
        *,
        reply_id: str,
    ) -> None:
        self._reply = reply
        style = StreamStyle(encode_error=reply.fail)
        super().__init__(request, [generation], reply, service, reply_id=reply_id, style=style)

    async def _frames(self) -> AsyncIterator[bytes]:
        yield self._reply.open()
        async with aclosing(cast("Any", super()._frames())) as frames:
            async for frame in frames:
                yield frame


async def _submit(
    service: Service,
    wire: ResponsesRequest,
    prompt: ChatPrompt,
    params: SamplingParams,
    reply_id: str,
) -> Generation:
    submit = partial(
        service.engine.submit,
        params=params,
        request_id=reply_id,
        cache_salt=wire.cache_salt or "",
        rules=to_rules(wire),
    )
    with named_as(FIELD_NAMES):
        try:
            return await submit(prompt)
        except ContextLengthError:
            if wire.truncation != "auto":
                raise
        return await submit(await cut_to_fit(service.engine, prompt, params.max_tokens or 1))


def _store_for(wire: ResponsesRequest, store: ResponseStore | None) -> ResponseStore | None:
    if wire.store and store is None:
        raise UnsupportedFeatureError("This server stores no responses.", param="store")
    return None if wire.store is False else store


async def _earlier_items(wire: InputFields, store: ResponseStore | None) -> Sequence[StoredItem]:
    if wire.conversation_id is None:
        chain = await _load_chain(store, wire.previous_response_id)
        if any("conversation" in it.response for it in chain):
            raise UnsupportedFeatureError(
                "The previous response is part of a conversation: go on with that.",
                param="previous_response_id",
            )
        return read_items(_raw_items(chain))
    if wire.previous_response_id is not None:
        raise InvalidRequestError(
            "'conversation' and 'previous_response_id' exclude each other.", param="conversation"
        )
    return read_items((await load_conversation(store, wire.conversation_id)).items)


def read_items(raw: Sequence[dict[str, Any]]) -> Sequence[StoredItem]:
    """Items as they were before they were stored."""
    return STORED_ITEMS.validate_json(json.dumps(raw))


async def resolve_items(
    given: str | Sequence[ItemWire], store: ResponseStore | None, field: str
) -> list[StoredItem]:
    """What a request gives as ``field``, references followed.

    Raises:
        InvalidRequestError: One leads nowhere.
    """
    if isinstance(given, str):
        return [MessageItem(role="user", content=given)]
    items: list[StoredItem] = []
    for index, item in enumerate(given):
        if isinstance(item, ItemReference):
            stored = await store.load(reply_id_of(item.id)) if store is not None else None
            found = [it for it in _raw_items([stored]) if it["id"] == item.id] if stored else []
            if not found:
                raise InvalidRequestError(
                    f"Item with id '{item.id}' not found.", param=f"{field}.{index}.id"
                )
            items += read_items(found)
        else:
            items.append(item)
    return items


def _raw_items(chain: Iterable[StoredResponse]) -> list[dict[str, Any]]:
    return [item for stored in chain for item in (*stored.items, *stored.response["output"])]


async def _load_chain(
    store: ResponseStore | None, response_id: str | None
) -> Sequence[StoredResponse]:
    if response_id is None:
        return ()
    chain = await store.load_chain(response_id) if store is not None else None
    if chain is None:
        raise InvalidRequestError(
            f"Previous response with id '{response_id}' not found, or one before it.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return chain


class NotInStoreError(ResponseNotFoundError):
    """No conversation or item of that id is stored."""

    def __init__(self, kind: str, its_id: str) -> None:
        PippinError.__init__(self, f"{kind} with id '{its_id}' not found.")
        self.code = f"{kind.lower()}_not_found"


def conversation_store(store: ResponseStore | None) -> ResponseStore:
    """The store.

    Raises:
        UnsupportedFeatureError: There is none.
    """
    if store is None:
        raise UnsupportedFeatureError("This server stores no conversations.", param="conversation")
    return store


async def load_conversation(
    store: ResponseStore | None, conversation_id: str, change: Change | None = None
) -> StoredConversation:
    """See `ResponseStore.load_conversation`.

    Raises:
        NotInStoreError: It is not there.
    """
    stored = await conversation_store(store).load_conversation(conversation_id, change)
    if stored is None:
        raise NotInStoreError("Conversation", conversation_id)
    return stored


async def _load(request: Request) -> StoredResponse:
    response_id, store = request.path_params["response_id"], state_of(request).store
    stored = await store.load(response_id) if store is not None else None
    if stored is None:
        raise ResponseNotFoundError(response_id)
    return stored


def check_query(request: Request, allowed: Mapping[str, Sequence[str] | None]) -> None:
    """Refuse parameters that are not there, and values that are not theirs."""
    for name, value in request.query_params.multi_items():
        if name not in allowed:
            raise InvalidRequestError(
                f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter"
            )
        values = allowed[name]
        if values is not None and value not in values:
            raise UnsupportedFeatureError(
                f"Unsupported value for '{name}': this server knows {' and '.join(values)}.",
                param=name,
            )


def state_of(request: Request) -> ResponsesState:
    return cast("ResponsesState", request.app.state.responses)
