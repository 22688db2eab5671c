"""Host memory: how much there is to take, as the container allows it, and keeping what was had."""

import ctypes
import os
import re
from pathlib import Path

from folovllm.machine.cgroups import ControlGroup, control_groups


def available_memory(root: Path = Path("/")) -> int:
    """Host memory that can still be taken without swapping, in bytes.

    The least of what the kernel calls available and what the control groups (v2 or v1) that
    this process is in leave; page cache counts as available, since the kernel gives it back.

    Args:
        root: where `/proc` and `/sys` are found.
    """
    lefts = (_left(group) for group in control_groups("memory", root))
    return max(0, min([_kernel_available(root), *(left for left in lefts if left is not None)]))


def memory_limit(root: Path = Path("/")) -> int | None:
    """The least that a control group (v2 or v1) of this process allows in all, in bytes.

    Args:
        root: where `/proc` and `/sys` are found.

    Returns:
        None without a limit.
    """
    limits = (_limit(group) for group in control_groups("memory", root))
    return min((limit for limit in limits if limit is not None), default=None)


# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST = 1 << 30


def keep_freed_memory() -> None:
    """Let the allocator keep what is freed, for the next step to use.

    A step allocates and frees megabytes for every layer. By default glibc gives such pieces back
    to the system at once, and the next layer waits for the kernel to hand out the same pages
    anew, one fault and 4 KiB at a time, which can take longer than computing with them. Where
    there is no glibc, nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MOST)
        mallopt(_M_TRIM_THRESHOLD, _MOST)


def give_back_freed_memory() -> None:
    """Return to the system what was freed between things that are still in use.

    glibc does so by itself at the end of its heap alone. Elsewhere nothing is done.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def use_huge_pages() -> None:
    """Let torch ask the system for huge pages for what is 2 MiB and more, unless told otherwise.

    Weights take hundreds of thousands of the usual pages of 4 KiB: to get them takes longer than
    to fill them, and to read them at every step needs as many look-ups.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own, read when it first allocates


def _kernel_available(root: Path) -> int:
    try:
        text = (root / "proc/meminfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    if found := re.search(r"^MemAvailable:\s*(\d+) kB$", text, re.MULTILINE):
        return int(found[1]) * 1024
    # Not Linux: what is physically there is the best that the standard library knows.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _limit(group: ControlGroup) -> int | None:
    limit = group.number("memory.max" if group.version == 2 else "memory.limit_in_bytes")
    # Version 1 says "no limit" with the largest number of pages.
    return limit if limit is not None and limit < 1 << 62 else None


def _left(group: ControlGroup) -> int | None:
    """What a group leaves; page cache counts as free."""
    limit = _limit(group)
    used = group.number("memory.current" if group.version == 2 else "memory.usage_in_bytes")
    if limit is None or used is None:
        return None
    stat, total = group.numbers("memory.stat"), "" if group.version == 2 else "total_"
    cache = [stat.get(f"{total}{kind}_file", 0) for kind in ("inactive", "active")]
    return limit - used + sum(cache)
