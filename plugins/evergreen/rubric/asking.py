"""Ask the ledger what the ML Test Score looks at: some fifteen short questions.

Only newest rows are read, so that a model's age costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, defer

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError
from evergreen.ledger import acts, records
from evergreen.ledger.tables import (
    DecisionRow,
    DrillRow,
    MeasurementRow,
    PartitionRow,
    PromotionEventRow,
    PromotionRow,
    SkewRow,
    VerdictRow,
)
from evergreen.rubric.known import Compared, Known, Measured, Rules

#: How many of the newest rows are read.
PROMOTIONS, VERDICTS, DECISIONS, SKEWS, MEASUREMENTS, PARTITIONS = 10, 20, 50, 20, 40, 10


def know(declaration: Declaration, session: Session) -> Known:
    """All that the rubric's tests look at.

    :param session: of `Ledger.read`.
    """
    name = declaration.name
    promotions = session.scalars(
        select(PromotionRow)
        .where(PromotionRow.model == name)
        .order_by(PromotionRow.position.desc())
        .limit(PROMOTIONS)
    ).all()
    live = promotions[0] if promotions else None
    verdict = _admitted(session, live) if live else None
    tables = _tables(session, name)
    decisions = session.execute(
        select(DecisionRow.tune, DecisionRow.as_of)
        .where(DecisionRow.model == name)
        .order_by(DecisionRow.id.desc())
        .limit(DECISIONS)
    ).all()
    return Known(
        declaration=declaration,
        suite=_suite(declaration),
        promotions=promotions,
        verdict=verdict,
        rules=verdict.rules if verdict else (),
        compared=sum(_has(rules, "improvement over champion") for rules in tables),
        probed=sum(_has(rules, "latency p95") and _has(rules, "peak memory") for rules in tables),
        alike=_alike(tables),
        looks=_looks(session, promotions),
        drill=session.scalar(
            select(DrillRow).where(DrillRow.model == name).order_by(DrillRow.id.desc()).limit(1)
        ),
        skew=_skew(session, name),
        drift=_drift(session, name, live),
        performance=_performance(session, name),
        searched=any(row.tune for row in decisions),
        decided=decisions[0].as_of if decisions else None,
        stopped=_stopped(session, name),
        paused=_paused(session, name),
        now=_now(session, name, live),
    )


def _suite(declaration: Declaration) -> int | str:
    from evergreen.lifecycle.expectations import read_suite

    try:
        suite = read_suite(declaration)
    except DeclarationError as error:  # a finding says it; the other 27 are still worth showing
        return str(error)
    return len(suite.entries) if suite else 0


def _admitted(session: Session, live: PromotionRow) -> VerdictRow | None:
    """The verdict that first let the live version in."""
    run = live.run_id
    if live.kind == "rollback":
        first = (
            select(PromotionRow.run_id)
            .where(PromotionRow.model == live.model, PromotionRow.version == live.version)
            .order_by(PromotionRow.position)
            .limit(1)
        )
        run = session.scalar(first) or run
    rows = select(VerdictRow).where(VerdictRow.model == live.model, VerdictRow.run_id == run)
    return session.scalar(rows.options(defer(VerdictRow.evidence)))  # the rules again, and more


def _tables(session: Session, model: str) -> Sequence[Rules]:
    """The rule tables of the newest verdicts, the newest first."""
    rows = select(VerdictRow.rules).where(VerdictRow.model == model)
    return session.scalars(rows.order_by(VerdictRow.id.desc()).limit(VERDICTS)).all()


def _has(rules: Rules, name: str) -> bool:
    return any(rule["name"].startswith(name) for rule in rules)


def _alike(tables: Sequence[Rules]) -> str | None:
    found = (r for rules in tables for r in rules if r["name"] == "same answers as in production")
    return next((str(rule["observed"]) for rule in found), None)


def _looks(session: Session, promotions: Sequence[PromotionRow]) -> dict[int, frozenset[str]]:
    rows = session.execute(
        select(PromotionEventRow.promotion_id, PromotionEventRow.event).where(
            PromotionEventRow.promotion_id.in_([row.id for row in promotions])
        )
    ).all()
    return {
        row.id: frozenset(event for promotion, event in rows if promotion == row.id)
        for row in promotions
    }


def _skew(session: Session, model: str) -> Compared | None:
    """The newest judged comparison, without what it rests on."""
    rows = session.execute(
        select(SkewRow.partition, SkewRow.as_of, SkewRow.violates, SkewRow.rows, SkewRow.judged)
        .where(SkewRow.model == model)
        .order_by(SkewRow.id.desc())
        .limit(SKEWS)
    ).all()
    return next((Compared(*row[:4]) for row in rows if row.judged), None)


def _newest(model: str, kind: str, *, only: str | None = None, most: int) -> Select[int]:
    """Ids of the newest measurements; alone, so that no database sorts their evidence."""
    rows = select(MeasurementRow.id).where(
        MeasurementRow.model == model, MeasurementRow.kind == kind
    )
    if only is not None:
        rows = rows.where(MeasurementRow.version == only)
    return rows.order_by(MeasurementRow.id.desc()).limit(most)


def _drift(session: Session, model: str, live: PromotionRow | None) -> Measured | None:
    for version in (live.version, None) if live else (None,):
        ids = _newest(model, "drift", only=version, most=5).subquery()
        rows = session.scalars(
            select(MeasurementRow)
            .where(MeasurementRow.id.in_(select(ids.c.id)), MeasurementRow.judged)
            .order_by(MeasurementRow.id.desc())
            .limit(1)
        )
        for row in rows:
            columns = row.evidence.get("columns") or ()
            return Measured(
                row.window, row.version, row.as_of, row.judged, row.violates, columns=columns
            )
    return None


def _performance(session: Session, model: str) -> list[Measured]:
    """Each window once, by its newest measurement."""
    ids = _newest(model, "performance", most=MEASUREMENTS).subquery()
    rows = session.execute(
        select(
            MeasurementRow.window,
            MeasurementRow.version,
            MeasurementRow.as_of,
            MeasurementRow.judged,
            MeasurementRow.violates,
            MeasurementRow.evidence["realised"].label("realised"),
            MeasurementRow.evidence["estimated"].label("estimated"),
            MeasurementRow.evidence["slices"].label("slices"),
            MeasurementRow.evidence["basis"].as_string().label("basis"),
        )
        .where(MeasurementRow.id.in_(select(ids.c.id)))
        .order_by(MeasurementRow.id.desc())
    )
    found: dict[tuple[str, str], Measured] = {}
    for row in rows:
        one = Measured(
            row.window, row.version, row.as_of, row.judged, row.violates, _values(row.realised),
            _values(row.estimated), row.slices or {}, basis=row.basis or "nothing",
        )  # fmt: skip
        found.setdefault((one.window, one.version), one)
    return [*found.values()]


def _values(intervals: Mapping[str, Any] | None) -> dict[str, float]:
    return {name: float(found["value"]) for name, found in (intervals or {}).items()}


def _stopped(session: Session, model: str) -> str | None:
    last = records.last_escalation(session, model)
    if last is None:
        return None
    answers = records.answers_to(session, last.id)
    return None if any(row.answer == "acknowledged" for row in answers) else last.reason


def _paused(session: Session, model: str) -> str | None:
    act = acts.pause_of(session, model)
    return None if act is None else f"{act.person}: {act.comment}"


def _now(session: Session, model: str, live: PromotionRow | None) -> datetime | None:
    ends = session.scalars(
        select(PartitionRow.end)
        .where(PartitionRow.model == model)
        .order_by(PartitionRow.id.desc())
        .limit(PARTITIONS)
    ).all()
    return max((*ends, *([live.as_of] if live else ())), default=None)
