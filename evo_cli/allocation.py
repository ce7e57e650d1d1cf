"""How the process holds memory that is free."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's <malloc.h>


def keep_freed_memory() -> None:
    """Let memory that was freed serve again, and stay with the process until its end.

    glibc gives every large block back to the system, so on a CPU each operation of a model would take its output anew,
    page by page: a quarter of the time of reading a sequence. Where the C library has no such setting, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # large blocks come from the heap, too
        mallopt(_M_TRIM_THRESHOLD, -1)  # whose end is not given back
