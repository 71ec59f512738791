"""What replicas count of a version: requests by how they ended, how long they took, rows.

Read from Prometheus' text format, subtracted and added up as Prometheus does it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FAILED = frozenset({"500", "504"})
"""The codes of a version's own failures: it raised, answered NaN or took too long."""


@dataclass(frozen=True)
class Counters:
    """What was counted of a version's answers as champion.

    :ivar answered, refused, failed: requests answered 2xx, 4xx, and those of `FAILED`.
    :ivar rows: rows answered.
    :ivar buckets: upper end in seconds → requests that took as long or less, rising.
    """

    answered: float = 0.0
    refused: float = 0.0
    failed: float = 0.0
    rows: float = 0.0
    buckets: Mapping[float, float] = field(default_factory=dict)

    @property
    def requests(self) -> float:
        """Requests that were the version's to answer: those it answered or failed."""
        return self.answered + self.failed

    @property
    def timed(self) -> float:
        """Requests whose time was taken."""
        return max(self.buckets.values(), default=0.0)

    def __add__(self, other: Counters) -> Counters:
        ends = sorted({*self.buckets, *other.buckets})
        return Counters(
            self.answered + other.answered,
            self.refused + other.refused,
            self.failed + other.failed,
            self.rows + other.rows,
            {end: _at(self.buckets, end) + _at(other.buckets, end) for end in ends},
        )

    def since(self, before: Counters) -> Counters:
        """What was counted since ``before``.

        A counter that fell was started anew, with its process: all that it shows is new, as in
        Prometheus' ``rate`` and ``increase``.
        """
        pairs = [*zip(self._plain(), before._plain(), strict=True)]
        pairs += [(count, _at(before.buckets, end)) for end, count in self.buckets.items()]
        if any(now < then for now, then in pairs):
            return self
        less = [now - then for now, then in pairs]
        buckets = dict(zip(self.buckets, less[4:], strict=True))
        return Counters(less[0], less[1], less[2], less[3], buckets)

    def p95(self) -> float | None:
        """The 95th percentile in seconds; None where nothing was timed. See `quantile`."""
        return quantile(0.95, self.buckets)

    def slower(self, seconds: float) -> float:
        """Requests that surely took longer: those above the next bucket's end."""
        within = [count for end, count in self.buckets.items() if end >= seconds]
        return self.timed - min(within, default=self.timed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        ends = [[str(end), count] for end, count in self.buckets.items()]
        return {**dict(zip(_PLAIN, self._plain(), strict=True)), "buckets": ends}

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Counters:
        """Read what `to_dict` wrote."""
        buckets = {float(end): float(count) for end, count in kept["buckets"]}
        return cls(**{name: float(kept[name]) for name in _PLAIN}, buckets=buckets)

    def _plain(self) -> tuple[float, ...]:
        return (self.answered, self.refused, self.failed, self.rows)


_PLAIN = ("answered", "refused", "failed", "rows")


def quantile(q: float, buckets: Mapping[float, float]) -> float | None:
    """A quantile of a histogram: its bucket, and in it as if values were spread evenly, as
    Prometheus' ``histogram_quantile`` has it (prometheus.io/docs, "Query functions").

    In the last bucket, whose upper end nobody knows, it is infinity; Prometheus gives the lower
    end, by which a bound beyond the buckets would be met by not knowing.

    :param buckets: upper end → count of values up to it, rising; the last end is infinity.
    :returns: None for an empty histogram.
    """
    total = max(buckets.values(), default=0.0)
    if total <= 0:
        return None
    rank, below, start = q * total, 0.0, 0.0
    for end in sorted(buckets):
        count = max(buckets[end], below)
        if count >= rank and count > below:
            if math.isinf(end):
                return math.inf
            return min(start + (end - start) * (rank - below) / (count - below), end)
        below, start = count, end
    return math.inf  # counts of a histogram without a last bucket


def parse(text: str, model: str, version: str) -> Counters:
    """The counters of a version as champion in Prometheus' text format.

    Of requests that ended in 5xx only those of `FAILED` are the version's failures. A 503 is the
    doing of the online store, the disk or the client: it counts neither for nor against it, and
    so does any other code that a proxy may have put there.

    :raises ValueError: for text that isn't.
    """
    from prometheus_client.parser import text_string_to_metric_families

    wanted = {"model": model, "version": version, "role": "champion"}
    ended = dict.fromkeys(("answered", "refused", "failed"), 0.0)
    rows = 0.0
    buckets: dict[float, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if any(sample.labels.get(name) != value for name, value in wanted.items()):
                continue
            if sample.name == "evergreen_requests_total":
                if (kind := _kind(sample.labels.get("code", ""))) is not None:
                    ended[kind] += sample.value
            elif sample.name == "evergreen_answers_total":
                rows += sample.value
            elif sample.name == "evergreen_request_seconds_bucket":
                end = float(sample.labels["le"])
                buckets[end] = buckets.get(end, 0.0) + sample.value
    ordered = {end: buckets[end] for end in sorted(buckets)}
    return Counters(**ended, rows=rows, buckets=ordered)


def _kind(code: str) -> str | None:
    """Which of the counters a request belongs to by its status; None for none."""
    if code in FAILED:
        return "failed"
    return {"2": "answered", "4": "refused"}.get(code[:1])


def _at(buckets: Mapping[float, float], end: float) -> float:
    """The count up to an end, also where a histogram has no bucket of just that end."""
    return max((count for upper, count in buckets.items() if upper <= end), default=0.0)
