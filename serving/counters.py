"""Room on the disk for the counters that the workers share."""

import os
from pathlib import Path

FOLDER = "UNMASK_COUNTERS"
"""Environment variable with the folder of the counters that this service's workers share. BentoML would use one for all services of a
user, and empty it whenever one of them starts, even if that start fails."""

KINDS = ("counter", "histogram")
"""Types of the metrics in serving/metrics.py: prometheus_client keeps a file for each."""

BYTES = 1 << 20
"""Of each file: about 400 model versions."""


def reserve(folder: Path) -> bool:
    """Make this process's files, with all of their blocks. Returns whether there is room for them.

    prometheus_client makes sparse files and maps them into memory: on a disk that is full by then, counting something new would end the
    process (SIGBUS).
    """
    made = [folder / f"{kind}_{os.getpid()}.db" for kind in KINDS]
    try:
        for path in made:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, BYTES)
    except OSError:
        for path in made:
            path.unlink(missing_ok=True)
        return False
    return True
