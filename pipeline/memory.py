"""How the C library hands out memory."""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Of glibc's mallopt(3)."""

LARGE_BLOCK = 4_000_000
"""Bytes. Pillow and numpy ask for such blocks for pictures of a megapixel and more."""


def keep_freed() -> None:
    """Have this process keep the memory that it frees, instead of giving it back to the system.

    A step of training on a CPU frees hundreds of megabytes of activations and asks for them again. Memory that comes anew is cleared and
    mapped page by page, which can take half of a step. Without glibc nothing happens.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(TRIM_THRESHOLD, -1)
        library.mallopt(MMAP_MAX, 0)


def give_back_large() -> None:
    """Have this process give large blocks back to the system as soon as they are freed.

    By itself glibc cuts large blocks from a heap of the thread, where they stay, from the first one on that was freed: six threads that
    had each looked at one picture of 49 megapixels kept 3.3 GB. Without glibc nothing happens.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(MMAP_THRESHOLD, LARGE_BLOCK)
        # Twice as much, as glibc has it where it chooses for itself; once told what is large it goes by 128 kB, and what a small picture
        # frees is given back, and mapped and cleared anew for the next one: half of the time of its statistics.
        library.mallopt(TRIM_THRESHOLD, 2 * LARGE_BLOCK)
