"""How many processors this process may use: in a container, often fewer than the machine has."""

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""A container's CPU limit in Linux: quota and period in microseconds; the quota, over all processors together, may be `max`."""


def cores() -> int:
    """Processors that this process may keep busy: those it may run on, or its container's CPU quota if that is less."""
    allowed = len(os.sched_getaffinity(0))
    quota, period = QUOTA.read_text().split() if QUOTA.is_file() else ("max", "")
    return allowed if quota == "max" else max(1, min(allowed, math.ceil(int(quota) / int(period))))
