"""One model's life as pages show it: bounded reads, and as many queries for long lives as for short.

Texts and tables of rules are read for the few rows that are shown; what is drawn over years takes
only the numbers, picked out of the evidence by the database.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import case, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from evergreen.ledger import records
from evergreen.ledger.tables import (
    DecisionRow,
    MeasurementRow,
    OutcomeRow,
    PromotionEventRow,
    PromotionRow,
    Table,
    VerdictRow,
)

Row = TypeVar("Row", bound=Table)
DRAWN = 2_000  # newest moments of each kind that a timeline shows


@dataclass(frozen=True)
class Entry:
    """A decision and what came of it."""

    decision: DecisionRow
    outcome: OutcomeRow | None = None
    verdict: VerdictRow | None = None
    promotion: PromotionRow | None = None


@dataclass(frozen=True)
class Point:
    """A window measured.

    :ivar realised: value, low and high of the asked metric; so is ``estimated``. ``basis`` says by
        which of them the window was judged.
    :ivar share: of the inputs, by importance, that drifted; ``bound`` is the most allowed.
    :ivar reference: the asked metric at promotion.
    """

    kind: str
    window: str
    version: str
    end: datetime
    judged: bool
    violates: tuple[str, ...]
    realised: dict[str, float] | None
    estimated: dict[str, float] | None
    share: float | None
    bound: float | None
    reference: float | None
    basis: str | None


def entries(
    session: Session, model: str, *, before: int | None = None, limit: int = 25
) -> list[Entry]:
    """The newest decisions, or those before one, with what came of each."""
    rows = select(DecisionRow).where(DecisionRow.model == model)
    if before is not None:
        rows = rows.where(DecisionRow.id < before)
    return _entries(
        session, model, session.scalars(rows.order_by(DecisionRow.id.desc()).limit(limit)).all()
    )


def entry_of(session: Session, model: str, run_id: str) -> Entry | None:
    """What a DAG run decided; None when it decided nothing."""
    decision = records.decision_of(session, model, run_id)
    return _entries(session, model, [decision])[0] if decision else None


def _entries(session: Session, model: str, found: Sequence[DecisionRow]) -> list[Entry]:
    runs = [row.run_id for row in found]
    outcomes = _by(session, model, OutcomeRow, OutcomeRow.decision_id, [row.id for row in found])
    verdicts = _by(session, model, VerdictRow, VerdictRow.run_id, runs)
    promotions = _by(session, model, PromotionRow, PromotionRow.run_id, runs)
    return [
        Entry(
            row, outcomes.get(row.id), verdicts.get(row.run_id), promotions.get(row.run_id)
        )
        for row in found
    ]  # fmt: skip


def promotions(session: Session, model: str, limit: int = DRAWN) -> Sequence[PromotionRow]:
    """The newest promotions and rollbacks, newest first."""
    rows = select(PromotionRow).where(PromotionRow.model == model)
    return session.scalars(rows.order_by(PromotionRow.position.desc()).limit(limit)).all()


def events(session: Session, promotion_id: int) -> Sequence[PromotionEventRow]:
    """How a promotion went on, in order."""
    rows = select(PromotionEventRow).where(PromotionEventRow.promotion_id == promotion_id)
    return session.scalars(rows.order_by(PromotionEventRow.id)).all()


def verdict_of(session: Session, promotion: PromotionRow) -> VerdictRow | None:
    """The verdict that a promotion's version passed; of a version that came back, the first one."""
    rows = select(VerdictRow).where(
        VerdictRow.model == promotion.model, VerdictRow.mlflow_run == promotion.mlflow_run
    )
    return session.scalar(rows.order_by(VerdictRow.promotes.desc(), VerdictRow.id.desc()).limit(1))


def decided(session: Session, model: str) -> Sequence[Any]:
    """The newest decisions' ``as_of``, ``recorded_at``, ``action``, ``cause``, ``outcome`` (the
    latest, None before any) and ``run_id``; oldest first."""
    came = (
        select(OutcomeRow.outcome)
        .where(OutcomeRow.decision_id == DecisionRow.id)
        .order_by(OutcomeRow.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    rows = (
        select(
            DecisionRow.as_of, DecisionRow.recorded_at, DecisionRow.action, DecisionRow.cause,
            came.label("outcome"), DecisionRow.run_id,
        )
        .where(DecisionRow.model == model)
        .order_by(DecisionRow.id.desc())
        .limit(DRAWN)
    )  # fmt: skip
    return session.execute(rows).all()[::-1]


def points(
    session: Session, model: str, metric: str | None, limit: int | None = None
) -> list[Point]:
    """Each window's latest measurement of drift and performance, by event time.

    :param limit: the newest of them at most; `DRAWN` of each kind when None.
    """
    evidence = MeasurementRow.evidence
    newest = (
        select(func.max(MeasurementRow.id))
        .where(MeasurementRow.model == model, MeasurementRow.kind.in_(("drift", "performance")))
        .group_by(MeasurementRow.kind, MeasurementRow.window, MeasurementRow.version)
    )
    rows = (
        select(
            MeasurementRow.kind,
            MeasurementRow.window,
            MeasurementRow.version,
            MeasurementRow.end,
            MeasurementRow.judged,
            MeasurementRow.violates,
            evidence["realised"][metric or ""].as_json(),
            evidence["estimated"][metric or ""].as_json(),
            evidence["share"].as_float(),
            evidence["share_bound"].as_float(),
            # Of drift it is a digest; the kind is asked first, for PostgreSQL takes nothing from one.
            case(
                (
                    MeasurementRow.kind == "performance",
                    evidence["reference"][metric or ""].as_float(),
                )
            ),
            evidence["basis"].as_string(),
        )
        .where(MeasurementRow.id.in_(newest))
        .order_by(MeasurementRow.end.desc(), MeasurementRow.id.desc())
        .limit(limit or 2 * DRAWN)
    )
    found = [
        Point(kind, window, version, end, judged, tuple(violates), *numbers)
        for kind, window, version, end, judged, violates, *numbers in session.execute(rows)
    ]
    return found[::-1]


def latest(
    session: Session, promotion: PromotionRow, kind: str, basis: str | None = None
) -> MeasurementRow | None:
    """The newest judged window of a kind that a live version answered, with all evidence.

    :param basis: judged by this, ``realised`` labels or ``estimated``; by either when None.
    """
    rows = select(MeasurementRow).where(
        MeasurementRow.model == promotion.model,
        MeasurementRow.version == promotion.version,
        MeasurementRow.kind == kind,
        MeasurementRow.judged,
        MeasurementRow.start >= promotion.as_of,
    )
    if basis is not None:
        rows = rows.where(MeasurementRow.evidence["basis"].as_string() == basis)
    return session.scalar(
        rows.order_by(MeasurementRow.end.desc(), MeasurementRow.id.desc()).limit(1)
    )


def reports(session: Session, model: str, limit: int = 12) -> Sequence[Any]:
    """The newest drift measurements with a page: ``id``, ``window``, ``version``, ``end``."""
    rows = (
        select(MeasurementRow.id, MeasurementRow.window, MeasurementRow.version, MeasurementRow.end)
        .where(
            MeasurementRow.model == model,
            MeasurementRow.kind == "drift",
            MeasurementRow.evidence["report"].as_string().is_not(None),
        )
        .order_by(MeasurementRow.id.desc())
        .limit(limit)
    )
    return session.execute(rows).all()


def known(session: Session, model: str) -> bool:
    """Whether the ledger knows of a model."""
    return records.sequence(session, model) > 0 or (
        session.scalar(select(DecisionRow.id).where(DecisionRow.model == model).limit(1))
        is not None
    )


def _by(
    session: Session,
    model: str,
    table: type[Row],
    key: InstrumentedAttribute[Any],
    values: Collection[Any],
) -> dict[Any, Row]:
    """The newest row of each key."""
    rows = select(table).where(table.model == model, key.in_(values)).order_by(table.id)
    return {getattr(row, key.key): row for row in session.scalars(rows)}
