"""What is written to the ledger and asked of it, one short function a question.

Every writer is harmless when repeated: a row whose key is there already is returned as it is.
All take a session of `Ledger.read` or `Ledger.write`, so that a caller decides what belongs to
one transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, String, and_, case, cast, exists, func, or_, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, defer

from evergreen.ledger.tables import (
    AnswerRow,
    ConsumedSignalRow,
    DecisionRow,
    DrillRow,
    EscalationRow,
    LabelRow,
    MeasurementRow,
    OutcomeRow,
    PartitionRow,
    PromotionEventRow,
    PromotionRow,
    QuarantineRow,
    ScoreRow,
    SegmentRow,
    ServedRow,
    SignalRow,
    SkewRow,
    Table,
    VerdictRow,
)

Row = TypeVar("Row", bound=Table)
DATA, LABELS = "data", "labels"  # the tables whose partitions are registered
LOST = ("failed", "abandoned")  # outcomes after which a run's signals are open again


def put(session: Session, row: Row, *key: str) -> Row:
    """Write ``row`` unless a row with the same ``key`` columns is there; return what is there."""
    table = type(row)
    same = [getattr(table, name) == getattr(row, name) for name in key]
    if (found := session.scalar(select(table).where(*same))) is not None:
        return found
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:  # another process wrote it between our look and our write
        return session.scalars(select(table).where(*same)).one()
    return row


def lock(session: Session, model: str) -> None:
    """Let one decision on a model be made at a time. SQLite's writers are alone already."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:key))"), {"key": model})


# partitions


def latest_partitions(
    session: Session, model: str, through: int | None = None, source: str | None = DATA
) -> Sequence[PartitionRow]:
    """Each partition in its latest revision, by event time; of those registered up to a sequence.

    :param source: of this table; of all when None.
    """
    newest = select(func.max(PartitionRow.id)).where(PartitionRow.model == model)
    if through is not None:
        newest = newest.where(PartitionRow.id <= through)
    if source is not None:
        newest = newest.where(PartitionRow.source == source)
    grouped = newest.group_by(PartitionRow.source, PartitionRow.key)
    rows = select(PartitionRow).where(PartitionRow.id.in_(grouped))
    return session.scalars(rows.order_by(PartitionRow.start, PartitionRow.source)).all()


def registered_in(session: Session, model: str, run_id: str) -> Sequence[PartitionRow]:
    """What a DAG run has registered, in order: the signals that were raised with it say so."""
    theirs = select(SignalRow.key).where(
        SignalRow.model == model,
        SignalRow.cause == "new_data",
        SignalRow.evidence["run_id"].as_string() == run_id,
    )
    numbered = PartitionRow.key + "/" + cast(PartitionRow.revision, String)
    named = case(
        (PartitionRow.source == DATA, numbered), else_=PartitionRow.source + "/" + numbered
    )
    rows = select(PartitionRow).where(PartitionRow.model == model, named.in_(theirs))
    return session.scalars(rows.order_by(PartitionRow.id)).all()


def watermark(session: Session, model: str) -> datetime | None:
    """The end of the newest registered partition: live data's notion of now.

    Of labels too: where they land by themselves, they are what happens last.
    """
    return session.scalar(select(func.max(PartitionRow.end)).where(PartitionRow.model == model))


def sequence(session: Session, model: str) -> int:
    """The sequence of the last registration, 0 before any."""
    return session.scalar(select(func.max(PartitionRow.id)).where(PartitionRow.model == model)) or 0


# signals and decisions


def raise_signal(
    session: Session, model: str, cause: str, key: str, as_of: datetime, evidence: Mapping[str, Any]
) -> SignalRow:
    """Ask for a retrain; once per (cause, key)."""
    row = SignalRow(model=model, cause=cause, key=key, as_of=as_of, evidence=dict(evidence))
    return put(session, row, "model", "cause", "key")


def open_signals(session: Session, model: str) -> Sequence[SignalRow]:
    """Signals that no decision has answered, or only ones whose run was lost."""
    answered = (
        select(ConsumedSignalRow.signal_id)
        .where(ConsumedSignalRow.model == model)
        .where(~_lost(ConsumedSignalRow.decision_id))
    )
    rows = select(SignalRow).where(SignalRow.model == model, SignalRow.id.not_in(answered))
    return session.scalars(rows.order_by(SignalRow.id)).all()


def answered(session: Session, signal: SignalRow) -> bool:
    """Whether some decision has answered a signal, whatever became of its run."""
    asked = exists().where(ConsumedSignalRow.signal_id == signal.id)
    return bool(session.scalar(select(asked)))


def decision_of(session: Session, model: str, run_id: str) -> DecisionRow | None:
    """The decision made in a DAG run."""
    return session.scalar(
        select(DecisionRow).where(DecisionRow.model == model, DecisionRow.run_id == run_id)
    )


def retrains(session: Session, model: str) -> Sequence[DecisionRow]:
    """Every decision to retrain, the newest first."""
    rows = select(DecisionRow).where(DecisionRow.model == model, DecisionRow.action == "retrain")
    return session.scalars(rows.order_by(DecisionRow.id.desc())).all()


def in_flight(session: Session, model: str) -> Sequence[DecisionRow]:
    """Decisions to retrain whose run has not ended."""
    ended = exists().where(OutcomeRow.decision_id == DecisionRow.id)
    rows = select(DecisionRow).where(
        DecisionRow.model == model, DecisionRow.action == "retrain", ~ended
    )
    return session.scalars(rows.order_by(DecisionRow.id)).all()


def conclude(session: Session, decision: DecisionRow, outcome: str, detail: str) -> OutcomeRow:
    """Record how a decision's run ended; once per outcome."""
    row = OutcomeRow(model=decision.model, decision_id=decision.id, outcome=outcome, detail=detail)
    return put(session, row, "decision_id", "outcome")


def outcome_of(session: Session, decision_id: int) -> OutcomeRow | None:
    """How a decision's run ended, by its latest outcome."""
    rows = select(OutcomeRow).where(OutcomeRow.decision_id == decision_id)
    return session.scalar(rows.order_by(OutcomeRow.id.desc()).limit(1))


def _lost(decision_id: Any) -> ColumnElement[bool]:
    """Whether a decision's run ended only in outcomes that gave nothing."""
    outcome = and_(OutcomeRow.decision_id == decision_id, OutcomeRow.outcome.in_(LOST))
    kept = and_(OutcomeRow.decision_id == decision_id, OutcomeRow.outcome.not_in(LOST))
    return and_(exists().where(outcome), ~exists().where(kept))


# measurements, escalations


def labels_known(session: Session, model: str) -> dict[tuple[str, str], LabelRow]:
    """What was last known of each scored partition's labels: (partition, version) → row."""
    newest = select(func.max(LabelRow.id)).where(LabelRow.model == model)
    grouped = newest.group_by(LabelRow.partition, LabelRow.version)
    rows = session.scalars(select(LabelRow).where(LabelRow.id.in_(grouped)))
    return {(row.partition, row.version): row for row in rows}


def measurements(
    session: Session,
    model: str,
    kind: str | None = None,
    version: str | None = None,
    *,
    bare: bool = False,
) -> Sequence[MeasurementRow]:
    """Each window's latest measurement, by event time.

    :param bare: without ``evidence``, some kilobytes a row, which a year's arbiter needn't read.
    """
    newest = select(func.max(MeasurementRow.id)).where(MeasurementRow.model == model)
    if kind is not None:
        newest = newest.where(MeasurementRow.kind == kind)
    if version is not None:
        newest = newest.where(MeasurementRow.version == version)
    grouped = newest.group_by(MeasurementRow.kind, MeasurementRow.window, MeasurementRow.version)
    rows = select(MeasurementRow).where(MeasurementRow.id.in_(grouped))
    if bare:
        rows = rows.options(defer(MeasurementRow.evidence, raiseload=True))
    return session.scalars(rows.order_by(MeasurementRow.end, MeasurementRow.id)).all()


def first_measured(session: Session, model: str, window: str) -> datetime | None:
    """When a window was first measured, by the database's clock."""
    rows = select(func.min(MeasurementRow.recorded_at))
    return session.scalar(
        rows.where(MeasurementRow.model == model, MeasurementRow.window == window)
    )


def watched_through(session: Session, model: str) -> int:
    """The sequence up to which monitoring has looked, 0 before it has."""
    last = select(func.max(MeasurementRow.sequence)).where(MeasurementRow.model == model)
    return session.scalar(last) or 0


def detectors_before(
    session: Session, model: str, as_of: datetime, sequence: int
) -> Sequence[MeasurementRow]:
    """States of concept-drift detectors, in order; not those of the moment itself, nor later."""
    rows = select(MeasurementRow).where(
        MeasurementRow.model == model,
        MeasurementRow.kind == "concept",
        MeasurementRow.sequence <= sequence,
        or_(MeasurementRow.sequence < sequence, MeasurementRow.as_of < as_of),
    )
    return session.scalars(rows.order_by(MeasurementRow.id)).all()


def last_escalation(session: Session, model: str) -> EscalationRow | None:
    """The latest time automatic retraining stopped."""
    rows = select(EscalationRow).where(EscalationRow.model == model)
    return session.scalar(rows.order_by(EscalationRow.id.desc()).limit(1))


def answers_to(session: Session, escalation_id: int) -> Sequence[AnswerRow]:
    """What was answered to an escalation, in order."""
    rows = select(AnswerRow).where(AnswerRow.escalation_id == escalation_id)
    return session.scalars(rows.order_by(AnswerRow.id)).all()


# verdicts, promotions, scores


def verdict_of(session: Session, model: str, run_id: str) -> VerdictRow | None:
    """The verdict of a DAG run."""
    return session.scalar(
        select(VerdictRow).where(VerdictRow.model == model, VerdictRow.run_id == run_id)
    )


def verdict_of_candidate(session: Session, model: str, mlflow_run: str) -> VerdictRow | None:
    """The newest verdict on what an MLflow run has trained."""
    rows = select(VerdictRow).where(VerdictRow.model == model, VerdictRow.mlflow_run == mlflow_run)
    return session.scalar(rows.order_by(VerdictRow.id.desc()).limit(1))


def champion(session: Session, model: str, as_of: datetime | None = None) -> PromotionRow | None:
    """The promotion whose version is live; or was, at ``as_of``."""
    rows = select(PromotionRow).where(PromotionRow.model == model)
    if as_of is not None:
        rows = rows.where(PromotionRow.as_of <= as_of)
    return session.scalar(rows.order_by(PromotionRow.position.desc()).limit(1))


def first_promotion(session: Session, model: str) -> PromotionRow | None:
    """The promotion with which the model's life began."""
    rows = select(PromotionRow).where(PromotionRow.model == model)
    return session.scalar(rows.order_by(PromotionRow.position).limit(1))


def promotion_of_version(session: Session, model: str, version: str) -> PromotionRow | None:
    """The latest promotion of a version: it may have come back by a rollback."""
    rows = select(PromotionRow).where(PromotionRow.model == model, PromotionRow.version == version)
    return session.scalar(rows.order_by(PromotionRow.position.desc()).limit(1))


def promotion_of(session: Session, model: str, run_id: str) -> PromotionRow | None:
    """The promotion a DAG run made."""
    return session.scalar(
        select(PromotionRow).where(PromotionRow.model == model, PromotionRow.run_id == run_id)
    )


def add_event(
    session: Session, promotion: PromotionRow, event: str, detail: Mapping[str, Any]
) -> None:
    """Record that a promotion has come this far; once per event."""
    row = PromotionEventRow(
        model=promotion.model, promotion_id=promotion.id, event=event, detail=dict(detail)
    )
    put(session, row, "promotion_id", "event")


def events_of(session: Session, promotion_id: int) -> dict[str, dict[str, Any]]:
    """How far a promotion has come: event → detail."""
    rows = select(PromotionEventRow).where(PromotionEventRow.promotion_id == promotion_id)
    return {row.event: row.detail for row in session.scalars(rows.order_by(PromotionEventRow.id))}


def former(session: Session, promotion: PromotionRow) -> PromotionRow | None:
    """The promotion that was live before another one."""
    rows = select(PromotionRow).where(
        PromotionRow.model == promotion.model, PromotionRow.position < promotion.position
    )
    return session.scalar(rows.order_by(PromotionRow.position.desc()).limit(1))


def rollbacks(session: Session, model: str) -> Sequence[PromotionRow]:
    """Every return to an earlier version, oldest first."""
    rows = select(PromotionRow).where(PromotionRow.model == model, PromotionRow.kind == "rollback")
    return session.scalars(rows.order_by(PromotionRow.position)).all()


def last_verified(
    session: Session, model: str, *, besides: Collection[str] = ()
) -> PromotionRow | None:
    """The newest promotion that was verified and isn't quarantined, of other versions than
    ``besides``."""
    proven = exists().where(
        PromotionEventRow.promotion_id == PromotionRow.id, PromotionEventRow.event == "verified"
    )
    rows = select(PromotionRow).where(
        PromotionRow.model == model,
        proven,
        PromotionRow.version.not_in([*quarantined(session, model), *besides]),
    )
    return session.scalar(rows.order_by(PromotionRow.position.desc()).limit(1))


def quarantined(session: Session, model: str) -> dict[str, QuarantineRow]:
    """Versions that no machine puts live again → why."""
    rows = select(QuarantineRow).where(QuarantineRow.model == model).order_by(QuarantineRow.id)
    return {row.version: row for row in session.scalars(rows)}


def drills(session: Session, model: str) -> Sequence[DrillRow]:
    """Every drilled rollback, the newest first."""
    rows = select(DrillRow).where(DrillRow.model == model)
    return session.scalars(rows.order_by(DrillRow.id.desc())).all()


# what replicas answered


def compacted(session: Session, model: str) -> set[str]:
    """The pieces of the prediction log that have been compacted."""
    return set(session.scalars(select(SegmentRow.segment).where(SegmentRow.model == model)))


def served(session: Session, model: str, partition: str | None = None) -> Sequence[ServedRow]:
    """The files of what replicas answered, in the order they were made."""
    rows = select(ServedRow).where(ServedRow.model == model)
    if partition is not None:
        rows = rows.where(ServedRow.partition == partition)
    return session.scalars(rows.order_by(ServedRow.id)).all()


def skews(session: Session, model: str) -> Sequence[SkewRow]:
    """Each partition's latest comparison of features as served, by event time."""
    newest = select(func.max(SkewRow.id)).where(SkewRow.model == model)
    rows = select(SkewRow).where(SkewRow.id.in_(newest.group_by(SkewRow.partition)))
    return session.scalars(rows.order_by(SkewRow.start)).all()


def scores(session: Session, model: str) -> Sequence[ScoreRow]:
    """Every scored partition, in the order of scoring."""
    return session.scalars(
        select(ScoreRow).where(ScoreRow.model == model).order_by(ScoreRow.id)
    ).all()


def history(session: Session, model: str) -> list[dict[str, Any]]:
    """Every decision with its outcome, verdict and promotion, oldest first."""
    decisions = select(DecisionRow).where(DecisionRow.model == model).order_by(DecisionRow.id)
    return [
        {
            "decision": decision,
            "outcome": outcome_of(session, decision.id),
            "verdict": verdict_of(session, model, decision.run_id),
            "promotion": promotion_of(session, model, decision.run_id),
        }
        for decision in session.scalars(decisions)
    ]
