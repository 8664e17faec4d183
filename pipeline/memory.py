"""Tuning of glibc's memory allocator."""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Parameters of glibc's mallopt(3)."""

LARGE_BLOCK = 4_000_000
"""Bytes. Pillow and numpy allocate such blocks for pictures of a megapixel and more."""


def keep_freed() -> None:
    """Make this process keep the memory that it frees, instead of returning it to the system.

    A training step on a CPU frees hundreds of megabytes of activations and allocates them again. New memory is mapped and zeroed page by
    page, which can take half of a step. Without glibc, this does nothing.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(TRIM_THRESHOLD, -1)
        library.mallopt(MMAP_MAX, 0)


def give_back_large() -> None:
    """Make this process return large blocks to the system as soon as they are freed.

    By default, once a first large block is freed, glibc takes later ones from the thread's own heap, where they stay: six threads that
    had each read one picture of 49 megapixels kept 3.3 GB. Without glibc, this does nothing.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(MMAP_THRESHOLD, LARGE_BLOCK)
        # Twice the size, as when glibc tunes itself. It stops that once MMAP_THRESHOLD is set, and would keep 128 kB here: what a small
        # picture frees would be returned, then mapped and zeroed for the next one, which is half of the time of its statistics.
        library.mallopt(TRIM_THRESHOLD, 2 * LARGE_BLOCK)
