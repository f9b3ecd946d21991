"""How work that nobody waits for shares the processors with what somebody does.

Linux lets a thread that has begun a turn finish it, and looks at the clock only when its timer ticks, often every 4 ms.
So where each processor has something to compute, a program that is woken by the answer to its request waits for the
end of somebody's turn: milliseconds, for an answer of 30 us. Whoever has shorter turns may interrupt longer ones,
though (Linux kernel/sched/fair.c, PREEMPT_SHORT, since 6.12), and one who takes the longest that there are is
interrupted by everybody. It gets its share all the same, unlike a thread that is *nice*.
"""

from __future__ import annotations

import ctypes
import os
import struct

_SYSCALL = {"x86_64": 314, "aarch64": 274, "riscv64": 274, "ppc64le": 355, "s390x": 345}
"""sched_setattr(2) by machine: glibc has had a function only since 2.41."""

_ATTR = struct.Struct("=IIQiIQQQ")  # struct sched_attr, sched_setattr(2), in its first version
_SCHED_BATCH = 3
_LONGEST_NS = 100_000_000


def take_long_turns(nice: int) -> bool:
    """Let everybody else interrupt the calling thread, and make it nicer by `nice`; returns whether that could be done.

    Before Linux 6.12 it is only that nice, and interrupts nobody else when it wakes up.
    """
    number = _SYSCALL.get(os.uname().machine)
    if number is None:
        return False
    nicer = min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice)
    attr = _ATTR.pack(_ATTR.size, _SCHED_BATCH, 0, nicer, 0, _LONGEST_NS, 0, 0)
    return int(ctypes.CDLL(None).syscall(number, 0, attr, 0)) == 0
