"""How many threads to compute with."""

import logging
import math
import os
from pathlib import Path

logger = logging.getLogger(__name__)


def allowed_cores(root: Path = Path("/")) -> int:
    """The cores that this process may keep busy: by affinity, and by its control group's quota.

    Args:
        root: where `/sys` is found.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = cpu_quota(root)
    limits = [cores or 1, *([math.ceil(quota)] if quota else [])]
    return max(1, min(limits))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The control group's limit in cores (v2, then v1); None without one.

    Args:
        root: where `/sys` is found.
    """
    group = root / "sys/fs/cgroup"
    try:
        limit, period = (group / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit = (group / "cpu/cpu.cfs_quota_us").read_text()
        period = (group / "cpu/cpu.cfs_period_us").read_text()
        return int(limit) / int(period) if int(limit) > 0 else None
    except (OSError, ValueError):
        return None


def use_allowed_cores() -> None:
    """Let torch compute on as many threads as there are cores for, unless the user said how many.

    torch counts the machine's cores, not those that a container may use; more threads than
    cores wait for one another.
    """
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = allowed_cores()
    if torch.get_num_threads() > cores:
        logger.info("computing on %d threads: this process may use no more cores", cores)
        torch.set_num_threads(cores)
