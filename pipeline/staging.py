"""Files that the pipeline writes for itself: there as a whole or not at all, whatever kills the process."""

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

STAGING = Path("var/sources")
"""Where sources that make or fetch images keep them, a folder a source."""


def write(path: Path, data: bytes) -> None:
    """Write a file under another name first and move it into place; its folder has to exist."""
    part = path.with_name(f"{hashlib.sha256(path.name.encode()).hexdigest()[:16]}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:  # a full disk would only be fuller
        part.unlink(missing_ok=True)
        raise


def make_once(path: Path, make: Callable[[Path], None]) -> None:
    """Make a large file unless it is there: under another name until it is whole; what a killed process left is written over.

    One process makes it. Another that wants the same waits, and finds it made.
    """
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # which ends with its process, however that ends
        if not path.is_file():
            part = path.with_suffix(".part")
            make(part)
            part.replace(path)


def keep(folder: Path, data: bytes, suffix: str) -> Path:
    """The file in `folder` that holds these bytes, named after their hash; written if it is not there."""
    file = folder / (hashlib.sha256(data).hexdigest()[:32] + suffix.lower()[:8])
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(file, data)
    return file


def stamp_of(path: Path | str) -> str:
    """What changes when a file does: its size and time; empty if it cannot be looked at."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a million of these
    except OSError:
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"
