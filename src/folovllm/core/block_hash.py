"""The chained hashes by which full cache blocks are found again.

The keys and values in a block depend on all tokens before it too, so its hash covers them: it is
taken over the hash of the block before and the block's own token ids
(`vllm/v1/core/kv_cache_utils.py`). They may depend on more than tokens, or be meant for some
requests alone: such extra keys, a cache salt or the name of an adapter, stand at the root of the
chain, so that every hash of it differs.
"""

import hashlib
from array import array

from folovllm.request import Sequence

ROOT_HASH = hashlib.sha256(b"folovllm").digest()
"""What stands for the block before the first."""


def hash_root(extra_keys: tuple[str, ...]) -> bytes:
    """Return what a chain begins with: `ROOT_HASH`, or another for each list of extra keys."""
    root = ROOT_HASH
    for key in extra_keys:
        # The hash of each key on its own, so that no two lists can spell the same bytes.
        key_hash = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        root = hashlib.sha256(root + key_hash).digest()
    return root


def hash_block(parent: bytes, token_ids: list[int]) -> bytes:
    """Return the hash (32 bytes) of a full block that follows the block with hash `parent`.

    SHA-256, because who finds a collision would read another user's cache.
    """
    return hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()


def get_block_hash(seq: Sequence, index: int, block_size: int) -> bytes:
    """Return the hash of a sequence's block, whose tokens must all be known.

    What is computed for it is kept in `seq.block_hashes`: tokens are never changed, so each
    block is hashed once in a sequence's life.
    """
    hashes = seq.block_hashes
    while len(hashes) <= index:
        start = len(hashes) * block_size
        parent = hashes[-1] if hashes else hash_root(seq.extra_keys)
        hashes.append(hash_block(parent, seq.data.get_slice(start, start + block_size)))
    return hashes[index]
