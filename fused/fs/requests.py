"""How many requests of each kind were served, and how long they took."""

from __future__ import annotations

from dataclasses import dataclass

_BUCKETS = 40
"""Powers of two of a microsecond; 2**39 us are six days."""


@dataclass(frozen=True, slots=True)
class RequestStats:
    """One kind of request. Times are what the handler took, in microseconds.

    The percentiles come from a histogram by powers of two, so they are right within a factor of two.
    """

    count: int
    errors: int
    p50_us: float
    p99_us: float
    max_us: float


class RequestCounter:
    """Counts requests of one kind."""

    __slots__ = ("buckets", "count", "errors", "max_ns")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.max_ns = 0
        self.buckets = [0] * _BUCKETS

    def add(self, took_ns: int, failed: int = 0) -> None:
        """One more request was answered, with a result or with the error `failed`."""
        self.count += 1
        if failed:
            self.errors += 1
        self.buckets[min(_BUCKETS - 1, (took_ns // 1000).bit_length())] += 1
        if took_ns > self.max_ns:
            self.max_ns = took_ns

    def stats(self) -> RequestStats:
        """The figures so far."""
        return RequestStats(self.count, self.errors, self._percentile(0.5), self._percentile(0.99), self.max_ns / 1000)

    def _percentile(self, part: float) -> float:
        """Interpolated within the bucket that holds it; never more than the longest time seen."""
        wanted = part * self.count
        seen = 0
        for index, count in enumerate(self.buckets):
            if count and seen + count >= wanted:
                low = 0.0 if index == 0 else float(1 << (index - 1))
                high = float(1 << index)
                return min(low + (high - low) * (wanted - seen) / count, self.max_ns / 1000)
            seen += count
        return 0.0
