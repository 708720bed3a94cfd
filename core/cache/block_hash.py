"""Names for the content of full blocks: a chained digest of everything that shaped their keys.

Two blocks may share memory exactly when their hashes are equal, so a hash covers the parent's hash
(all tokens before), the block's own token ids, and, through the root, whatever else changes keys
and values: the model's fingerprint, adapter, KV dtype and the caller's salt.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import NewType

BlockHash = NewType("BlockHash", bytes)

_DIGEST_BYTES = 16


def root_hash(*extra_keys: str) -> BlockHash:
    """Parent of a sequence's first block.

    Args:
        extra_keys: What distinguishes caches besides tokens, in a fixed order.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for key in extra_keys:
        # A salt may come from JSON, which can spell half of a surrogate pair.
        raw = key.encode("utf-8", "surrogatepass")
        # Length first, so that ("ab", "c") and ("a", "bc") differ.
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return BlockHash(digest.digest())


def hash_block(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """Hash of one full block whose predecessor has the hash ``parent``."""
    raw = array("q", token_ids).tobytes()
    return BlockHash(hashlib.blake2b(raw, digest_size=_DIGEST_BYTES, key=parent).digest())
