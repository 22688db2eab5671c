"""Host memory: how much there is to take, as the container allows it, and keeping what was had."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Host memory that can still be taken without swapping, in bytes.

    The least of what the kernel calls available and what the control groups (v2 or v1) that
    this process is in leave; page cache counts as available, since the kernel gives it back.

    Args:
        root: where `/proc` and `/sys` are found.
    """
    limits = [_kernel_available(root)]
    limits += [left for group in _groups(root, "") if (left := _left_v2(group)) is not None]
    limits += [left for group in _groups(root, "memory") if (left := _left_v1(group)) is not None]
    return max(0, min(limits))


def memory_limit(root: Path = Path("/")) -> int | None:
    """The least that a control group (v2 or v1) of this process allows in all, in bytes.

    Args:
        root: where `/proc` and `/sys` are found.

    Returns:
        None without a limit.
    """
    limits = [_number(group / "memory.max") for group in _groups(root, "")]
    limits += [_number(group / "memory.limit_in_bytes") for group in _groups(root, "memory")]
    # Version 1 says "no limit" with the largest number of pages.
    return min((limit for limit in limits if limit and limit < 1 << 62), default=None)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


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
        fields = _key_values(root / "proc/meminfo")
        return fields["MemAvailable:"] * 1024
    except (OSError, KeyError):
        # Not Linux: what is physically there is the best that the standard library knows.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of our control group and of those around it, each of which may have a limit.

    A container sees its own group as the outermost; a job of a batch system or a service does
    not. A folder that is not there is one that a container cannot see.

    Args:
        root: where `/proc` and `/sys` are found.
        controller: "memory" in version 1; "" in version 2, which has one tree for all.
    """
    top = root / "sys/fs/cgroup" / controller
    yield top
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = top / path.lstrip("/")
            while group != top and top in group.parents:
                yield group
                group = group.parent


def _left_v2(group: Path) -> int | None:
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = _key_values(group / "memory.stat")
    except OSError:
        return None
    if limit == "max":
        return None
    return int(limit) - used + stat.get("inactive_file", 0) + stat.get("active_file", 0)


def _left_v1(group: Path) -> int | None:
    try:
        limit = int((group / "memory.limit_in_bytes").read_text())
        used = int((group / "memory.usage_in_bytes").read_text())
        stat = _key_values(group / "memory.stat")
    except OSError:
        return None
    cache = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
    return limit - used + cache


def _key_values(path: Path) -> dict[str, int]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2}
