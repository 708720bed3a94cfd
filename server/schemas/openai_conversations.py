"""``/v1/conversations``: what may be asked.

Source: platform.openai.com/docs/api-reference/conversations.
"""

from __future__ import annotations

from .openai_responses import ItemWire, MetadataWire
from .wire_model import WireModel


class NewConversation(WireModel):
    """What a conversation begins with."""

    items: tuple[ItemWire, ...] | None = None
    metadata: MetadataWire | None = None


class ConversationUpdate(WireModel):
    """What takes the place of all metadata."""

    metadata: MetadataWire | None


class NewItems(WireModel):
    """Items for the end of a conversation."""

    items: tuple[ItemWire, ...]
