"""Keeps freed memory between batches: on Linux, handing every activation back to the kernel costs half the time.

glibc returns large blocks to the kernel as soon as they are free, and every batch then pays for its pages again: for a
network of a few milliseconds a batch that is up to half of its time. No number depends on it.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Final

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD: Final = (-1, 2**28)
_TOP_PAD: Final = (-2, 2**26)
_MMAP_THRESHOLD: Final = (-3, 2**25)


@cache
def keep_freed_memory() -> bool:
    """Ask glibc to keep up to 256 MiB of freed memory, and blocks of up to 32 MiB, for the next batch; once a process.

    Returns:
        Whether it could be asked: only on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(*setting) == 1 for setting in (_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD))
