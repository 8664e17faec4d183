"""How many processors there are for this process: in a container, often fewer than the machine has."""

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux says what a container may use: microseconds of all processors together, or `max`, in how many of the clock."""


def cores() -> int:
    """Processors that this process may keep busy: those that it may run on, or its container's share of time if that is less."""
    allowed = len(os.sched_getaffinity(0))
    quota, period = QUOTA.read_text().split() if QUOTA.is_file() else ("max", "")
    return allowed if quota == "max" else max(1, min(allowed, math.ceil(int(quota) / int(period))))
