"""What a stage used: seconds, CPU seconds, peak memory; and what that costs by a declared price.

Measured by the kernel's own counters at the start and the end, so measuring costs nothing while
a stage works. What was measured is logged and emitted, never part of a result: a repeat must
write the same documents.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

# getrusage counts memory in KiB on Linux and in bytes on macOS.
_PER_MB = 1024**2 if sys.platform == "darwin" else 1024
_HOUR = 3600.0


@dataclass(frozen=True)
class Usage:
    """What was used.

    :ivar seconds: wall time.
    :ivar cpu_seconds: of all threads, and of child processes that have ended.
    :ivar peak_mb: the most that this process ever held in memory, in MiB. A task's process lives
        for one task, and counts what it shares with the process it was forked from.
    :ivar child_peak_mb: the most that any one ended child process held, in MiB; 0 without one, or
        when one that had ended before the meter was made held more.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    child_peak_mb: float

    def cost(self, price: float, *, billed: float | None = None) -> float:
        """What it costs: hours times the price of one hour.

        :param billed: the seconds that are paid for, where they aren't the wall time.
        """
        return (self.seconds if billed is None else billed) / _HOUR * price

    def describe(self, rows: int | None = None) -> str:
        """One line for a task's log.

        >>> Usage(61.25, 98.5, 512.4, 0.0).describe(rows=12000)
        'used: 61.2 s, CPU 98.5 s, peak memory 512 MB, rows 12,000'
        """
        child = f" and a child's {self.child_peak_mb:.0f} MB" if self.child_peak_mb else ""
        counted = "" if rows is None else f", rows {rows:,}"
        return (
            f"used: {self.seconds:.1f} s, CPU {self.cpu_seconds:.1f} s, "
            f"peak memory {self.peak_mb:.0f} MB{child}{counted}"
        )


class Meter:
    """Measures from where it is made."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._cpu = _cpu_seconds()
        self._child_peak = _peak_mb(resource.RUSAGE_CHILDREN)

    def read(self) -> Usage:
        """What was used until now."""
        child_peak = _peak_mb(resource.RUSAGE_CHILDREN)
        return Usage(
            seconds=time.monotonic() - self._began,
            cpu_seconds=_cpu_seconds() - self._cpu,
            peak_mb=_peak_mb(resource.RUSAGE_SELF),
            # The kernel keeps one peak of all children: of an earlier one this meter knows nothing.
            child_peak_mb=child_peak if child_peak > self._child_peak else 0.0,
        )


def _cpu_seconds() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def _peak_mb(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / _PER_MB
