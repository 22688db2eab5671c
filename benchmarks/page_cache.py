"""Bring files into the kernel's page cache or out of it, and prove which it is (Linux)."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

BLOCK = 1 << 22


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
        PermissionError: a file is another user's and not writable, of which the kernel says
            that all its pages are there, whether they are or not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    resident = total = 0
    for path in paths:
        if path.stat().st_uid != os.geteuid() and not os.access(path, os.W_OK):
            raise PermissionError(f"mincore tells the truth only to who may write {path}")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            pages = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
            first = np.frombuffer(view, np.uint8)
            failed = libc.mincore(
                ctypes.c_void_p(first.ctypes.data),
                ctypes.c_size_t(len(view)),
                ctypes.c_void_p(pages.ctypes.data),
            )
            del first  # a mapping in use cannot be closed
        if failed:
            raise OSError(ctypes.get_errno(), f"mincore failed for {path}")
        resident += int((pages & 1).sum())
        total += pages.size
    return resident / total
