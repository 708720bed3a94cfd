"""``/v1/conversations``: items that responses begin with, and that theirs are added to.

In a conversation all items get ids from the server, also those that came with one: no two may
have the same.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..adapters.openai_responses import to_messages, to_stored_items
from ..response_store import Change, StoredConversation
from ..schemas.openai_conversations import ConversationUpdate, NewConversation, NewItems
from ..schemas.openai_responses import ItemWire
from ..schemas.wire_model import parse_body
from .openai_responses import (
    NotInStoreError,
    check_query,
    conversation_store,
    load_conversation,
    make_list,
    make_page,
    read_items,
    resolve_items,
    state_of,
)


async def create_conversation(request: Request) -> Response:
    """Begin a conversation."""
    store = conversation_store(state_of(request).store)
    wire = parse_body(NewConversation, await request.body())
    conversation = {
        "id": f"conv_{uuid.uuid4().hex}",
        "object": "conversation",
        "created_at": int(time.time()),
        "metadata": wire.metadata or {},
    }
    add, _ = await _adding(request, wire.items or ())
    await store.save(add(StoredConversation(conversation=conversation, items=[])))
    return JSONResponse(conversation)


async def show_conversation(request: Request) -> Response:
    """A conversation, without its items."""
    return JSONResponse((await _change(request)).conversation)


async def update_conversation(request: Request) -> Response:
    """Give a conversation other metadata."""
    metadata = parse_body(ConversationUpdate, await request.body()).metadata or {}

    def update(stored: StoredConversation) -> StoredConversation:
        return replace(stored, conversation={**stored.conversation, "metadata": metadata})

    return JSONResponse((await _change(request, update)).conversation)


async def delete_conversation(request: Request) -> Response:
    """Forget a conversation and its items."""
    conversation_id = (await _change(request)).conversation["id"]
    await conversation_store(state_of(request).store).delete(conversation_id)
    return JSONResponse({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


async def list_items(request: Request) -> Response:
    """What is in a conversation."""
    stored = await load_conversation(
        state_of(request).store, request.path_params["conversation_id"]
    )
    return JSONResponse(make_page(request, stored.items))


async def add_items(request: Request) -> Response:
    """Put items at the end of a conversation, all or none."""
    wire = parse_body(NewItems, await request.body())
    add, shown = await _adding(request, wire.items)
    await _change(request, add)
    return JSONResponse(make_list(shown, has_more=False))


async def show_item(request: Request) -> Response:
    """One item."""
    item_id = request.path_params["item_id"]
    for item in (await _change(request)).items:
        if item["id"] == item_id:
            return JSONResponse(item)
    raise NotInStoreError("Item", item_id)


async def delete_item(request: Request) -> Response:
    """Take one item out of a conversation."""
    item_id = request.path_params["item_id"]

    def remove(stored: StoredConversation) -> StoredConversation:
        kept = [item for item in stored.items if item["id"] != item_id]
        if len(kept) == len(stored.items):
            raise NotInStoreError("Item", item_id)
        return replace(stored, items=kept)

    return JSONResponse((await _change(request, remove)).conversation)


async def _change(request: Request, change: Change | None = None) -> StoredConversation:
    check_query(request, {})
    return await load_conversation(
        state_of(request).store, request.path_params["conversation_id"], change
    )


async def _adding(
    request: Request, wire_items: Sequence[ItemWire]
) -> tuple[Change, list[dict[str, Any]]]:
    """The change that adds items to a conversation, and the items as they are shown from then."""
    items = await resolve_items(wire_items, state_of(request).store, "items")
    shown = to_stored_items(items, uuid.uuid4().hex, keep_ids=False)

    def add(stored: StoredConversation) -> StoredConversation:
        earlier = read_items(stored.items)
        # What no prompt can be made of is refused now rather than at each response to come.
        to_messages([*earlier, *items], len(earlier), ("conversation", "items"))
        return stored.with_more(shown)

    return add, shown


_CONVERSATION = "/v1/conversations/{conversation_id}"
_ITEM = f"{_CONVERSATION}/items/{{item_id}}"
CONVERSATION_ROUTES = (
    Route("/v1/conversations", create_conversation, methods=["POST"]),
    Route(_CONVERSATION, show_conversation),
    Route(_CONVERSATION, update_conversation, methods=["POST"]),
    Route(_CONVERSATION, delete_conversation, methods=["DELETE"]),
    Route(f"{_CONVERSATION}/items", list_items),
    Route(f"{_CONVERSATION}/items", add_items, methods=["POST"]),
    Route(_ITEM, show_item),
    Route(_ITEM, delete_item, methods=["DELETE"]),
)
