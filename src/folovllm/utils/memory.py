"""How much host memory there is to take, as the container allows it."""

import os
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Host memory that can still be taken without swapping, in bytes.

    The least of what the kernel calls available and what the control group (v2 or v1) of a
    container leaves; page cache counts as available, since the kernel gives it back.

    Args:
        root: where `/proc` and `/sys` are found.
    """
    limits = [_kernel_available(root), _cgroup_v2(root), _cgroup_v1(root)]
    return min(limit for limit in limits if limit is not None)


def _kernel_available(root: Path) -> int:
    try:
        fields = _key_values(root / "proc/meminfo")
        return fields["MemAvailable:"] * 1024
    except (OSError, KeyError):
        # Not Linux: what is physically there is the best that the standard library knows.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_v2(root: Path) -> int | None:
    group = root / "sys/fs/cgroup"
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = _key_values(group / "memory.stat")
    except OSError:
        return None
    if limit == "max":
        return None
    return int(limit) - used + stat.get("inactive_file", 0) + stat.get("active_file", 0)


def _cgroup_v1(root: Path) -> int | None:
    group = root / "sys/fs/cgroup/memory"
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
