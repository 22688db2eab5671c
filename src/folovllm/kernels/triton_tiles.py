"""How the Triton kernels' work is cut: by what the host knows, so that nothing waits.

The tiles were chosen by compiling the kernels for compute capabilities 8.0, 8.6 and 9.0 and
looking at shared memory and spilled registers, not by timing them.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:  # the attention room stands above this one
    from folovllm.attention.paged import PagedMetadata


LARGEST_HEAD = 256
STORED_AT_ONCE = 2048
"""Numbers of one token that a program stores together."""

_MOST_SPLITS = 64  # the kernel that combines them holds them all
_PROMPT_SHARE = 512  # keys below which splitting a prompt's tiles costs more than it brings


class Device(NamedTuple):
    """What a GPU has: multiprocessors, and bytes of shared memory on each of them."""

    processors: int
    shared_memory: int


INTERPRETER = Device(processors=16, shared_memory=100 << 10)
"""What a CPU passes for, so that the interpreter splits keys too."""


class Tiles(NamedTuple):
    """A program's part.

    Attributes:
        rows: tokens times the query heads of a key head; a power of two from 16.
        columns: keys at a time; a power of two from 16.
        warps: of 32 threads.
        stages: of Triton's pipeline. Loading the block table takes a part of them: below 5, the
            next keys are loaded only when the last ones have been used.
    """

    rows: int
    columns: int
    warps: int
    stages: int


class Launch(NamedTuple):
    """A grid of programs: `row_tiles` by key heads by `splits`, a power of two."""

    tiles: Tiles
    row_tiles: int
    splits: int


def choose_launch(
    metadata: "PagedMetadata", query: torch.Tensor, kv_heads: int, value_size: int
) -> Launch:
    """The launch for a step's queries, `[1, num_heads, T, key_size]`."""
    _, num_heads, tokens, key_size = query.shape
    group = num_heads // kv_heads
    device = describe(query.device)
    decoding = metadata.max_query_len == 1
    width = padded(max(key_size, value_size))
    tiles = choose_tiles(width, query.dtype.itemsize, group, decoding, device.shared_memory)
    row_tiles = count_row_tiles(
        tokens, metadata.block_table.shape[0], tiles.rows // group, decoding
    )
    programs = row_tiles * kv_heads
    if decoding:
        splits = choose_splits(programs, 4 * device.processors, metadata.max_seq_len, tiles.columns)
    else:
        splits = choose_splits(programs, device.processors, metadata.max_seq_len, _PROMPT_SHARE)
    return Launch(tiles, row_tiles, splits)


@lru_cache
def describe(device: torch.device) -> Device:
    """What a device has."""
    if device.type != "cuda":
        return INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    return Device(properties.multi_processor_count, properties.shared_memory_per_multiprocessor)


def choose_tiles(
    width: int, itemsize: int, group: int, decoding: bool, shared_memory: int
) -> Tiles:
    """Tiles that fit into shared memory and registers.

    Args:
        width: the larger of a key's and a value's numbers, padded to a power of two.
        itemsize: bytes of a number.
        group: query heads for a key head.
        decoding: every sequence has one token.
        shared_memory: bytes on a multiprocessor; a program may take 1 KiB less.
    """
    wide = width > 128
    if itemsize == 4:
        tiles = Tiles(16 if decoding else 32, 16 if width > 64 else 32, 8, 3)
    elif decoding and group <= 16:
        tiles = Tiles(16, 32 if wide else 64, 4, 5)
    elif shared_memory >= 200 << 10:
        tiles = Tiles(128, 32 if wide else 64, 8, 5)
    else:
        tiles = Tiles(64, 32, 8, 3) if wide else Tiles(128, 32, 8, 5)
    return tiles._replace(rows=max(tiles.rows, padded(group)))


def most_rows(size: int, itemsize: int) -> int:
    """The most query heads for a key head that there are tiles for."""
    return (32 << 10) // (padded(size) * itemsize)


def count_row_tiles(tokens: int, num_seqs: int, tokens_per_tile: int, decoding: bool) -> int:
    """The most tiles that any sequences of as many tokens in all have."""
    return tokens if decoding else tokens // tokens_per_tile + num_seqs


def choose_splits(programs: int, wanted: int, max_seq_len: int, share: int) -> int:
    """Into how many parts each sequence's keys are split: a power of two.

    Args:
        programs: there would be without.
        wanted: programs that keep the device busy.
        max_seq_len: the most keys of a sequence.
        share: the least keys that are worth a program.
    """
    splits = min(wanted // programs, -(-max_seq_len // share), _MOST_SPLITS)
    return 1 << max(splits, 1).bit_length() - 1


def padded(size: int) -> int:
    """The next power of two, 16 at least: what a tile can be."""
    return max(16, 1 << (size - 1).bit_length())
