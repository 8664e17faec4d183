"""How the C library hands out memory."""

import ctypes

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Of glibc's mallopt(3)."""


def keep_freed() -> None:
    """Have this process keep the memory that it frees, instead of giving it back to the system.

    A step of training on a CPU frees hundreds of megabytes of activations and asks for them again. Memory that comes anew is cleared and
    mapped page by page, which can take half of a step. Without glibc nothing happens.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(TRIM_THRESHOLD, -1)
        library.mallopt(MMAP_MAX, 0)
