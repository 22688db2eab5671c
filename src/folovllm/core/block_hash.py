"""The chained hashes by which full cache blocks are found again.

The keys and values in a block depend on all tokens before it too, so its hash covers them: it is
taken over the hash of the block before and the block's own token ids
(`vllm/v1/core/kv_cache_utils.py`).
"""

import hashlib
from array import array

from folovllm.request import Sequence, SequenceData

ROOT_HASH = hashlib.sha256(b"folovllm").digest()
"""What stands for the block before the first."""


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
        parent = hashes[-1] if hashes else ROOT_HASH
        hashes.append(hash_block(parent, _slice(seq.data, start, start + block_size)))
    return hashes[index]


def _slice(data: SequenceData, start: int, end: int) -> list[int]:
    # Not a slice of get_token_ids(), which would copy the whole sequence for every block.
    after = len(data.prompt_token_ids)
    outputs = data.output_token_ids[max(start - after, 0) : max(end - after, 0)]
    return data.prompt_token_ids[start:end] + outputs
