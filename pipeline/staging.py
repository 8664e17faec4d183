"""Atomic writes of the pipeline's own files: complete or absent, whatever kills the process."""

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

CACHE = Path("var/cache")
"""Decoded images, and features of them."""

STAGING = Path("var/sources")
"""Where sources that render or download images keep them, one folder per source."""


def write(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and move it into place; its folder has to exist."""
    part = path.with_name(f"{hashlib.sha256(path.name.encode()).hexdigest()[:16]}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:  # on a full disk, leave nothing behind
        part.unlink(missing_ok=True)
        raise


def make_once(path: Path, make: Callable[[Path], None]) -> None:
    """Make a large file unless it is there: under another name until complete; leftovers of a killed process are overwritten.

    One process makes it; others that want the same file wait for it.
    """
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when its process ends, however it ends
        if not path.is_file():
            part = path.with_suffix(".part")
            make(part)
            part.replace(path)


def keep(folder: Path, data: bytes, suffix: str) -> Path:
    """The file in `folder` with these bytes, named after their hash; written if it is not there."""
    file = folder / (hashlib.sha256(data).hexdigest()[:32] + suffix.lower()[:8])
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(file, data)
    return file


def stamp_of(path: Path | str) -> str:
    """A stamp that changes when a file does: its size and modification time; empty if it cannot be accessed."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a million of these
    except OSError:
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"
