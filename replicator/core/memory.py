"""Keeping freed memory for the next batch.

A node works in buffers of about a mebibyte. glibc gives such a buffer back to the kernel when
it is freed, and the next one starts as 256 page faults; on a busy link that is a fifth of the
CPU time (measured with `python -m bench store_to_store`). Told to keep up to a bounded amount, it
hands the same pages out again.
"""

import ctypes
import gc
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_KEEP_BYTES: Final = 64 * 1024 * 1024
_GC_FIRST: Final = 10_000
"""New objects between two looks for cycles. Python's 700 is too often for batches. More makes each look longer: 50,000
objects that turn out to be garbage, as a flood of failing requests leaves them, held up the event loop for 80 ms.
"""
_ARENAS: Final = 4
"""Each arena keeps its own free pages; glibc's default of 8 a core would multiply what is kept."""


def settle_heap() -> None:
    """Once a node is up: what is there now stays as long as it does, so no collection need look at it again.

    Modules, classes and the node's own parts are some two hundred thousand objects; to walk them holds up the event
    loop for tens of milliseconds, in the middle of whatever frame happens to be read. What is garbage now goes first.
    """
    gc.collect()
    gc.freeze()


def keep_freed_memory() -> bool:
    """Tell glibc. Returns whether it understood; with another C library nothing changes.

    And tell Python to look for cycles less often: batches make many objects and hardly any cycle.
    """
    gc.set_threshold(_GC_FIRST, 20, 20)
    try:
        tell = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(
        tell(_M_MMAP_THRESHOLD, 32 * 1024 * 1024)
        and tell(_M_TRIM_THRESHOLD, _KEEP_BYTES)
        and tell(_M_ARENA_MAX, _ARENAS)
    )


def give_back_freed_memory() -> None:
    """After work that needed much and does not come again soon: some milliseconds."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return  # Another C library.
    trim(0)
