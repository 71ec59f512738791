"""What the champion answered for whole partitions."""

from __future__ import annotations

from collections.abc import Iterator

from evergreen.lifecycle.contracts.base import Contract, Result


class ScoredPartition(Contract):
    """The predictions of one partition by one version."""

    partition: str
    revision: int
    version: str
    rows: int
    uri: str
    digest: str
    metrics: dict[str, float] = {}
    unseen: dict[str, int] = {}


class ScoreReport(Result):
    """What was scored, and what was left and why."""

    kind = "score"
    scored: tuple[ScoredPartition, ...] = ()
    skipped: dict[str, str] = {}

    def describe(self) -> Iterator[str]:
        for part in self.scored:
            known = ", ".join(f"{name} {value:.4f}" for name, value in part.metrics.items())
            yield f"scored {part.partition}: {part.rows:,} rows by version {part.version}; {known}"
            for column, count in part.unseen.items():
                yield f"  {column}: {count:,} rows hold a category that version {part.version} never saw"
            yield f"  prediction log: {part.uri}"
        for key, reason in self.skipped.items():
            yield f"not scored {key}: {reason}"
