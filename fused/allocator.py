"""What the C library's allocator does with memory that was freed.

Chunks of 1 MiB are read, hashed and stored by a dozen threads in turn, and under a load of many programs thousands of
small things come and go with them. glibc keeps most of what is freed then, for itself and for good. Other C libraries
have neither of these calls, nor these habits; there nothing happens.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8  # mallopt(3), malloc.h
_ARENAS = 2


def bound_arenas() -> None:
    """Let all threads share two arenas, before the first thread starts. Each of them keeps its holes.

    By default there may be 8 for each processor, and two are as fast: under the load of 24 processes
    (tests/stress/load.py) the daemon had 63 and 68 MiB after one and two minutes, instead of 73 and 90. Mapping each
    chunk for itself (M_MMAP_THRESHOLD) saves a few MiB more and costs a quarter of the speed of storing.
    """
    call = getattr(ctypes.CDLL(None), "mallopt", None)
    if call is not None:
        call(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Return to the system whatever whole pages are free, for a quiet moment: takes a millisecond or two.

    After five minutes of that load it was 10 of 80 MiB.
    """
    call = getattr(ctypes.CDLL(None), "malloc_trim", None)  # malloc_trim(3)
    if call is not None:
        call(0)
