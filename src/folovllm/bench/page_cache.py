"""Bring files into the kernel's page cache or out of it, and prove which it is (Linux)."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from folovllm.bench.results import BenchError

BLOCK = 1 << 22
COLD_AT_MOST, WARM_AT_LEAST = 0.05, 0.95

State = Literal["warm", "cold"]


def set_state(state: State, folder: Path, shards: Iterable[Path]) -> float:
    """Make the page cache warm or cold of a model's files.

    Args:
        state: which.
        folder: with all of the files.
        shards: those with the weights.

    Returns:
        The share of the weights' pages that is in the cache now, as `mincore` says: the proof.

    Raises:
        BenchError: the files stay in the cache, or do not fit into it.
    """
    files = [path for path in folder.iterdir() if path.is_file()]
    if state == "cold":
        drop(files)
    else:
        read_through(files)
    share = resident_share(shards)
    if state == "cold" and share > COLD_AT_MOST:
        raise BenchError(
            f"the page cache cannot be made cold: {share:.0%} of the weights stay in it. Has "
            "another process mapped them, or does this file system (tmpfs) keep its pages?"
        )
    if state == "warm" and share < WARM_AT_LEAST:
        raise BenchError(f"only {share:.0%} of the weights fit into the page cache")
    return share


def read_through(paths: Iterable[Path]) -> int:
    """Read files from begin to end into one small buffer; how many bytes they have."""
    buffer = bytearray(BLOCK)
    total = 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


def drop(paths: Iterable[Path]) -> None:
    """Ask the kernel to forget files. It keeps pages that another process has mapped."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages not yet written would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_share(paths: Iterable[Path]) -> float:
    """The share of the files' pages that is in the page cache, from 0 to 1, by `mincore`.

    Raises:
        BenchError: a file is another user's and not writable, of which the kernel says that all
            its pages are there, whether they are or not; or the kernel gives no answer.
    """
    pages = [_resident_pages(path) for path in paths]
    return sum(map(sum, pages)) / sum(map(len, pages))


def _resident_pages(path: Path) -> bytes:
    """A byte for each page of a file: 1 if it is in the page cache."""
    if path.stat().st_uid != os.geteuid() and not os.access(path, os.W_OK):
        raise BenchError(f"what of {path} is in the page cache is told only to who may write it")
    libc = ctypes.CDLL(None, use_errno=True)
    # Private and never written to: a read-only mapping has no address that ctypes would give.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        pages = (ctypes.c_ubyte * -(-len(view) // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(view)
        failed = libc.mincore(ctypes.byref(first), ctypes.c_size_t(len(view)), pages)
        del first  # a mapping in use cannot be closed
    if failed:
        reason = os.strerror(ctypes.get_errno())
        raise BenchError(f"mincore does not tell what of {path} is in the page cache: {reason}")
    return bytes(page & 1 for page in pages)  # the other bits have no meaning yet
