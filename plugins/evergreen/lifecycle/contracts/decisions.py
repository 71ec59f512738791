"""What was decided: the arbiter's decision, the gate's verdict, the promotion."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Literal, Self

from pydantic import AwareDatetime

from evergreen.ledger.tables import DecisionRow, PromotionRow
from evergreen.lifecycle.contracts.base import Contract, Reference, Result

Action = Literal["retrain", "suppress", "investigate", "rollback"]


class Decision(Result):
    """What the arbiter decided, for which causes, and why."""

    kind = "decision"
    id: int
    run_id: str
    action: Action
    cause: str | None
    causes: tuple[str, ...] = ()
    reasons: tuple[str, ...]
    as_of: AwareDatetime
    sequence: int
    until: AwareDatetime | None = None
    tune: bool = False
    override: str | None = None
    futile: int = 0
    priority: str | None = None

    @classmethod
    def from_row(cls, row: DecisionRow) -> Self:
        """Read a ledger row."""
        names = set(cls.model_fields)
        return cls.model_validate({name: getattr(row, name) for name in names})

    def describe(self) -> Iterator[str]:
        yield f"as of {self.as_of.isoformat()}, partitions through sequence {self.sequence}"
        yield f"signals: {', '.join(self.causes) or 'none'}"
        yield from (f"  {reason}" for reason in self.reasons)
        if self.priority:
            futile = f", {self.futile} futile retrains in a row" if self.futile else ""
            yield f"priority: {self.priority}{futile}"
        until = f" until {self.until.isoformat()}" if self.until else ""
        yield f"decision: {self.action.upper()}{until}" + (
            f", cause {self.cause}" if self.cause else ""
        )


class Champion(Contract):
    """The version that was live at some moment. ``position`` is what compare-and-set compares."""

    version: str
    position: int
    mlflow_run: str
    model_uri: str
    snapshot: Reference
    trained_through: AwareDatetime
    as_of: AwareDatetime

    @classmethod
    def from_row(cls, row: PromotionRow) -> Self:
        """Read a ledger row."""
        return cls(
            version=row.version,
            position=row.position,
            mlflow_run=row.mlflow_run,
            model_uri=row.model_uri,
            trained_through=row.trained_through,
            as_of=row.as_of,
            snapshot=Reference(kind="snapshot", uri=row.snapshot_uri, digest=row.snapshot_digest),
        )


class Rule(Contract):
    """One line of the gate's table."""

    name: str
    observed: str
    bound: str
    passed: bool


VerdictName = Literal["promote", "reject", "inconclusive", "incomparable", "bootstrap"]


class Verdict(Result):
    """The gate's answer and the whole table it rests on.

    ``difference`` and ``interval`` are the candidate's improvement in ``primary`` over the
    champion, or without one over the naive baseline. ``production_rows`` of the holdout's rows
    were answered in production; where they were enough to judge by, ``production_difference`` and
    ``production_interval`` are the improvement over those answers.
    """

    kind = "verdict"
    verdict: VerdictName
    promotes: bool
    reason: str
    rules: tuple[Rule, ...]
    primary: str
    difference: float | None = None
    interval: tuple[float, float] | None = None
    production_rows: int = 0
    production_difference: float | None = None
    production_interval: tuple[float, float] | None = None
    champion_version: str | None
    champion_position: int
    mlflow_run: str
    override: str | None = None

    def describe(self) -> Iterator[str]:
        width = max(len(rule.name) for rule in self.rules)
        for rule in self.rules:
            mark = "pass" if rule.passed else "FAIL"
            yield f"  {mark}  {rule.name:<{width}}  {rule.observed}  (bound: {rule.bound})"
        yield f"verdict: {self.verdict.upper()}: {self.reason}"
        yield "next: promote" if self.promotes else "next: nothing; the champion stays"


class Promotion(Result):
    """A version that went live, and what it replaced."""

    kind = "promotion"
    version: str
    position: int
    replaced: str | None
    as_of: AwareDatetime
    mlflow_run: str
    materialized: dict[str, tuple[datetime, datetime]] = {}
    server: str = "no server is declared; nothing to wait for"

    def describe(self) -> Iterator[str]:
        yield f"version {self.version} is live as of {self.as_of.isoformat()}; it replaced {self.replaced or 'nothing'}"
        for view, (start, end) in self.materialized.items():
            yield f"  online features {view}: {start.isoformat()} to {end.isoformat()}"
        yield f"serving: {self.server}"
