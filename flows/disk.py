"""Names a full disk as the likely cause of a failure."""

import shutil
from pathlib import Path

LEAST = 100 * 2**20
"""Bytes. With less than this free, a full disk is the likely cause. More than 0, because a partly written file may be deleted by now."""


def full() -> str | None:
    """Message for the user if this folder's disk is full, else None."""
    free = shutil.disk_usage(Path.cwd()).free
    if free >= LEAST:
        return None
    return f"the disk of {Path.cwd()} is full ({free / 1e6:.1f} MB left): free some space and run again; it resumes"
