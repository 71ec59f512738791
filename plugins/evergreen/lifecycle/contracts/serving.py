"""What is known of a version at work: baked, served alike, rolled back, drilled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import AwareDatetime

from evergreen.lifecycle.contracts.base import Contract, Result
from evergreen.lifecycle.contracts.decisions import Rule

BakeOutcome = Literal["verified", "baking", "roll_back", "nothing"]


class BakeReport(Result):
    """One look at a new version: the rules it was judged by, and what follows.

    ``part`` says what was looked at: ``requests`` (a server's answers) or ``labels``. ``baking``
    means that there is not enough to judge by yet, ``nothing`` that no version bakes.
    ``difference`` and ``interval`` are the new version's improvement in the primary metric over
    the former champion, or without one over the naive baseline, on the same ``rows``. ``over``
    means that this part has said all that it will say of the version; it doesn't wait for more.
    """

    kind = "bake"
    part: Literal["requests", "labels"]
    outcome: BakeOutcome
    reason: str
    as_of: AwareDatetime | None = None
    version: str | None = None
    position: int | None = None
    former: str | None = None
    rules: tuple[Rule, ...] = ()
    rows: int = 0
    difference: float | None = None
    interval: tuple[float, float] | None = None
    over: bool = False

    def describe(self) -> Iterator[str]:
        if self.version is not None:
            yield f"version {self.version}, beside {self.former or 'no former champion'}, by {self.part}"
        if self.rules:
            width = max(len(rule.name) for rule in self.rules)
            for rule in self.rules:
                mark = "pass" if rule.passed else "FAIL"
                yield f"  {mark}  {rule.name:<{width}}  {rule.observed}  (bound: {rule.bound})"
        yield f"bake: {self.outcome.upper().replace('_', ' ')}: {self.reason}"
        yield {
            "verified": "next: nothing; it may be rolled back to",
            "baking": "next: nothing here" if self.over else "next: another look",
            "roll_back": "next: roll back to the last verified version, and quarantine this one",
            "nothing": "next: nothing",
        }[self.outcome]


class Rollback(Result):
    """A return to an earlier version: who, when, why, and what was quarantined."""

    kind = "rollback"
    version: str
    replaced: str
    position: int
    as_of: AwareDatetime
    reason: str
    person: str | None = None
    quarantined: bool = True
    verified: bool = True
    server: str = ""

    def describe(self) -> Iterator[str]:
        yield (
            f"version {self.version} is live again as of {self.as_of.isoformat()}, at position "
            f"{self.position}; it replaced {self.replaced}"
        )
        yield f"asked by {self.person or 'the machine'}: {self.reason}"
        if self.quarantined:
            yield f"version {self.replaced} is quarantined: no machine puts it live again"
        if not self.verified:
            yield f"version {self.version} was never verified: it bakes again"
        yield f"serving: {self.server or 'no server is declared; nothing to wait for'}"


class DrillReport(Result):
    """A rollback drilled on a server beside production. Seconds are wall time."""

    kind = "drill"
    version: str | None
    target: str | None
    passed: bool
    problem: str | None = None
    restore_seconds: float | None = None
    return_seconds: float | None = None
    start_seconds: float | None = None
    rules: tuple[Rule, ...] = ()

    def describe(self) -> Iterator[str]:
        for rule in self.rules:
            mark = "pass" if rule.passed else "FAIL"
            yield f"  {mark}  {rule.name}: {rule.observed}  (bound: {rule.bound})"
        if self.restore_seconds is not None and self.return_seconds is not None:
            yield (
                f"seconds to restore version {self.target}: {self.restore_seconds:.2f}; to come "
                f"back to version {self.version}: {self.return_seconds:.2f}"
            )
        yield f"drill: {'PASSED' if self.passed else 'FAILED'}: {self.problem or 'a rollback works'}"


class Compaction(Result):
    """Pieces of replicas' prediction logs that became Parquet: partition → file.

    ``torn`` counts unfinished last lines, of requests that were never answered.
    """

    kind = "compaction"
    segments: int = 0
    rows: int = 0
    files: dict[str, str] = {}
    torn: int = 0

    def describe(self) -> Iterator[str]:
        yield f"segments compacted: {self.segments}, with {self.rows:,} answers; torn lines: {self.torn}"
        for partition, uri in self.files.items():
            yield f"  {partition}: {uri}"


class Materialized(Result):
    """Features that were put online: view → the [start, end) of event time that was read."""

    kind = "materialized"
    views: dict[str, tuple[AwareDatetime, AwareDatetime]]

    def describe(self) -> Iterator[str]:
        for view, (start, end) in self.views.items():
            yield f"{view}: each key's newest row of {start.isoformat()} to {end.isoformat()}"
        yield "online: none was moved back"


class FeatureSkew(Contract):
    """One feature as served beside offline. ``missing`` is there on one side only."""

    feature: str
    mismatches: int
    missing: int
    share: float
    violates: bool


class PartitionSkew(Contract):
    """Features as served in a partition's time. ``skipped`` says why it wasn't judged."""

    partition: str
    digest: str
    start: AwareDatetime
    end: AwareDatetime
    rows: int
    compared: int = 0
    features: tuple[FeatureSkew, ...] = ()
    skipped: str | None = None

    @property
    def violates(self) -> tuple[str, ...]:
        """The features that differ too often."""
        return tuple(found.feature for found in self.features if found.violates)


class SkewReport(Result):
    """Training-serving skew of partitions that nobody has compared, or that changed."""

    kind = "skew"
    as_of: AwareDatetime | None
    sequence: int = 0
    bound: float
    partitions: tuple[PartitionSkew, ...] = ()

    def describe(self) -> Iterator[str]:
        for part in self.partitions:
            yield f"{part.partition}: {part.compared:,} of {part.rows:,} answers compared"
            if part.skipped:
                yield f"  not judged: {part.skipped}"
            for found in sorted(part.features, key=lambda f: -f.share)[:10]:
                mark = "FAIL" if found.violates else "pass"
                yield (
                    f"  {mark}  {found.feature}: {found.share:.2%} differ, of which "
                    f"{found.missing:,} are there on one side only  (bound: {self.bound:.2%})"
                )
        if not self.partitions:
            yield "nothing was served in time that has landed since"
