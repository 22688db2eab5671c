"""How many threads to compute with."""

import logging
import math
import os
from pathlib import Path

from folovllm.machine.cgroups import ControlGroup, control_groups

logger = logging.getLogger(__name__)


def allowed_cores(root: Path = Path("/")) -> int:
    """The cores that this process may keep busy: by affinity, and by its control group's quota.

    Args:
        root: where `/proc` and `/sys` are found.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = cpu_quota(root)
    limits = [cores or 1, *([math.ceil(quota)] if quota else [])]
    return max(1, min(limits))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The least that a control group (v2 or v1) of this process allows, in cores.

    Args:
        root: where `/proc` and `/sys` are found.

    Returns:
        None without a limit.
    """
    quotas = (_quota(group) for group in control_groups("cpu", root))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(group: ControlGroup) -> float | None:
    if group.version == 2:
        limit, period = [*(group.text("cpu.max") or "").split(), "", ""][:2]
    else:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        limit, period = (group.text(name) or "" for name in names)
    # "max" in version 2 and -1 in version 1 are no limit.
    return int(limit) / int(period) if limit.isdigit() and period.strip("0").isdigit() else None


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
