"""Says that a disk is full where something failed for that."""

import shutil
from pathlib import Path

LEAST = 100 * 2**20
"""Bytes: what fails with less than this left most likely failed for that. What was half written may be gone again when one looks."""


def full() -> str | None:
    """What to tell a person, if this folder's disk is full; None if it is not."""
    free = shutil.disk_usage(Path.cwd()).free
    if free >= LEAST:
        return None
    return f"the disk of {Path.cwd()} is full ({free / 1e6:.1f} MB left): make room and run again, it goes on where it was"
