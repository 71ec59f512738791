"""The ledger's tables: what arrived, what was asked, decided, judged and promoted.

Nothing is ever updated or deleted: a change is a new row. Uniqueness constraints carry the keys
that make a repeat harmless. Times inside are tz-aware UTC; ``recorded_at`` is the database's
clock, for people, and no decision reads it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, Dialect, ForeignKey, Index, MetaData, Text, UniqueConstraint, func
from sqlalchemy import DateTime as _DateTime
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class DateTime(TypeDecorator[datetime]):
    """A tz-aware UTC time on every database, also on those that forget the zone."""

    impl = _DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time in the ledger needs a zone, found {value!r}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own configuration attribute
        datetime: DateTime,
        dict[str, Any]: JSON,
        list[Any]: JSON,
        str: Text(),
    }

    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(index=True)
    recorded_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PartitionRow(Table):
    """A landed partition in one revision. ``id`` is its sequence: the order of registration.

    ``source`` is ``data``, or ``labels`` for a table of labels that lands by itself.
    """

    __tablename__ = "partitions"
    __table_args__ = (UniqueConstraint("model", "source", "key", "revision"),)

    source: Mapped[str] = mapped_column(default="data")
    key: Mapped[str]
    revision: Mapped[int]
    start: Mapped[datetime]
    end: Mapped[datetime]
    digest: Mapped[str]
    rows: Mapped[int]
    late: Mapped[bool]
    files: Mapped[dict[str, Any]]
    maturity: Mapped[dict[str, Any]]


class SignalRow(Table):
    """A cause's wish for a retrain, with its evidence."""

    __tablename__ = "signals"
    __table_args__ = (
        UniqueConstraint("model", "cause", "key"),
        Index("ix_signals_newest", "model", "id"),
    )

    cause: Mapped[str]
    key: Mapped[str]
    as_of: Mapped[datetime]
    evidence: Mapped[dict[str, Any]]


class DecisionRow(Table):
    """What the arbiter decided in one DAG run."""

    __tablename__ = "decisions"
    __table_args__ = (
        UniqueConstraint("model", "run_id"),
        Index("ix_decisions_newest", "model", "id"),
    )

    run_id: Mapped[str]
    action: Mapped[str]
    cause: Mapped[str | None]
    causes: Mapped[list[Any]]
    reasons: Mapped[list[Any]]
    as_of: Mapped[datetime]
    sequence: Mapped[int]
    until: Mapped[datetime | None]
    tune: Mapped[bool]
    override: Mapped[str | None]
    futile: Mapped[int] = mapped_column(default=0)
    priority: Mapped[str | None]


class ConsumedSignalRow(Table):
    """A signal that a decision answered. It is open again once that decision's run failed."""

    __tablename__ = "consumed_signals"
    __table_args__ = (UniqueConstraint("signal_id", "decision_id"),)

    signal_id: Mapped[int] = mapped_column(ForeignKey("signals.id"))
    decision_id: Mapped[int] = mapped_column(ForeignKey("decisions.id"), index=True)


class OutcomeRow(Table):
    """How the run of a decision ended. A cleared run may add a second, later outcome."""

    __tablename__ = "outcomes"
    __table_args__ = (UniqueConstraint("decision_id", "outcome"),)

    decision_id: Mapped[int] = mapped_column(ForeignKey("decisions.id"), index=True)
    outcome: Mapped[str]
    detail: Mapped[str]


class VerdictRow(Table):
    """The gate's verdict in one DAG run, with the table it rests on."""

    __tablename__ = "verdicts"
    __table_args__ = (UniqueConstraint("model", "run_id"),)

    run_id: Mapped[str]
    verdict: Mapped[str]
    promotes: Mapped[bool]
    reason: Mapped[str]
    as_of: Mapped[datetime]
    champion_version: Mapped[str | None]
    mlflow_run: Mapped[str]
    rules: Mapped[list[Any]]
    evidence: Mapped[dict[str, Any]]
    override: Mapped[str | None]


class PromotionRow(Table):
    """A version that became champion. ``position`` counts per model without gaps, so that of two
    promotions judged against the same champion only one can be written (compare-and-set).
    ``origin`` refers to what the version was made from and judged by. A rollback is one of ``kind``
    ``rollback``: an earlier version at a new position, with ``person`` who asked."""

    __tablename__ = "promotions"
    __table_args__ = (UniqueConstraint("model", "position"), UniqueConstraint("model", "run_id"))

    position: Mapped[int]
    run_id: Mapped[str]
    version: Mapped[str]
    replaced: Mapped[str | None]
    kind: Mapped[str]
    reason: Mapped[str]
    as_of: Mapped[datetime]
    mlflow_run: Mapped[str]
    model_uri: Mapped[str]
    snapshot_uri: Mapped[str]
    snapshot_digest: Mapped[str]
    trained_through: Mapped[datetime]
    origin: Mapped[dict[str, Any]]
    person: Mapped[str | None]


class PromotionEventRow(Table):
    """How far a promotion has come: ``aliased``, ``materialized``, ``profiled``, ``served``,
    ``completed``. Then of baking: ``watching`` since when, ``looked:<rows>`` at labels without an
    answer, ``watched`` and ``proven`` when it was well by requests and by labels, ``verified`` when
    by both, ``disproved`` when by either it wasn't."""

    __tablename__ = "promotion_events"
    __table_args__ = (UniqueConstraint("promotion_id", "event"),)

    promotion_id: Mapped[int] = mapped_column(ForeignKey("promotions.id"), index=True)
    event: Mapped[str]
    detail: Mapped[dict[str, Any]]


class QuarantineRow(Table):
    """A version that no machine puts live again, since the promotion of ``promotion_id`` was
    rolled back in ``run_id``."""

    __tablename__ = "quarantines"
    __table_args__ = (UniqueConstraint("model", "version"),)

    version: Mapped[str]
    promotion_id: Mapped[int] = mapped_column(ForeignKey("promotions.id"), index=True)
    run_id: Mapped[str]
    person: Mapped[str | None]
    reason: Mapped[str]


class DrillRow(Table):
    """A rollback drilled beside production: seconds to restore ``target``, and to come back."""

    __tablename__ = "drills"
    __table_args__ = (UniqueConstraint("model", "run_id"),)

    run_id: Mapped[str]
    version: Mapped[str]
    target: Mapped[str]
    as_of: Mapped[datetime]
    passed: Mapped[bool]
    restore_seconds: Mapped[float | None]
    return_seconds: Mapped[float | None]
    evidence: Mapped[dict[str, Any]]


class SegmentRow(Table):
    """A piece of a replica's prediction log that has been compacted: exactly once."""

    __tablename__ = "segments"
    __table_args__ = (UniqueConstraint("model", "segment"),)

    segment: Mapped[str]
    digest: Mapped[str]
    rows: Mapped[int]
    compaction: Mapped[str]


class ServedRow(Table):
    """A Parquet file of what replicas answered for a partition's time, made by one compaction."""

    __tablename__ = "served"
    __table_args__ = (UniqueConstraint("model", "partition", "compaction"),)

    partition: Mapped[str]
    compaction: Mapped[str]
    rows: Mapped[int]
    uri: Mapped[str]


class SkewRow(Table):
    """Features as served in a partition's time beside the point-in-time join offline; the latest
    row of a partition speaks for it. ``digest`` is of which answers and tables were compared."""

    __tablename__ = "skews"
    __table_args__ = (UniqueConstraint("model", "partition", "digest"),)

    partition: Mapped[str]
    digest: Mapped[str]
    start: Mapped[datetime]
    end: Mapped[datetime]
    as_of: Mapped[datetime]
    sequence: Mapped[int]
    rows: Mapped[int]
    judged: Mapped[bool]
    violates: Mapped[list[Any]]
    evidence: Mapped[dict[str, Any]]


class ScoreRow(Table):
    """A partition's revision scored by a version; ``metrics`` of the labels known by then."""

    __tablename__ = "scores"
    __table_args__ = (UniqueConstraint("model", "partition", "revision", "version"),)

    partition: Mapped[str]
    revision: Mapped[int]
    version: Mapped[str]
    run_id: Mapped[str]
    rows: Mapped[int]
    uri: Mapped[str]
    digest: Mapped[str]
    metrics: Mapped[dict[str, Any]]


class LabelRow(Table):
    """What was known of a scored partition's labels as of a moment; ``pending`` ones have landed
    but become known later."""

    __tablename__ = "labels"
    __table_args__ = (
        UniqueConstraint("model", "partition", "revision", "version", "as_of", "sequence"),
    )

    partition: Mapped[str]
    revision: Mapped[int]
    version: Mapped[str]
    as_of: Mapped[datetime]
    sequence: Mapped[int]
    rows: Mapped[int]
    matured: Mapped[int]
    pending: Mapped[int]
    uri: Mapped[str]


class MeasurementRow(Table):
    """A window measured: for ``drift``, ``performance``, or the state of ``concept`` detectors.

    Measured again as labels become known; the latest row of a window speaks for it.
    ``digest`` is of which answers were measured; ``violates`` names what is beyond its bound;
    ``judged`` is false where too little was there.
    """

    __tablename__ = "measurements"
    __table_args__ = (
        UniqueConstraint("model", "kind", "window", "version", "as_of", "sequence", "digest"),
        Index("ix_measurements_latest", "model", "version", "kind", "window"),
        Index("ix_measurements_newest", "model", "version", "kind", "end", "id"),
    )

    kind: Mapped[str]
    window: Mapped[str]
    version: Mapped[str]
    start: Mapped[datetime]
    end: Mapped[datetime]
    as_of: Mapped[datetime]
    sequence: Mapped[int]
    digest: Mapped[str]
    judged: Mapped[bool]
    violates: Mapped[list[Any]]
    evidence: Mapped[dict[str, Any]]


class EscalationRow(Table):
    """Automatic retraining stopped: the retrain of ``decision_id`` was one ``futile`` too many, or
    what it promoted was rolled back by machine (``cause`` ``rollback``)."""

    __tablename__ = "escalations"
    __table_args__ = (
        UniqueConstraint("model", "decision_id", "cause"),
        Index("ix_escalations_newest", "model", "id"),
    )

    cause: Mapped[str] = mapped_column(default="futile")
    decision_id: Mapped[int] = mapped_column(ForeignKey("decisions.id"), index=True)
    as_of: Mapped[datetime]
    priority: Mapped[str]
    futile: Mapped[int]
    reason: Mapped[str]


class AnswerRow(Table):
    """What a person said to an escalation: ``acknowledged``, ``declined``; or ``unanswered``."""

    __tablename__ = "answers"
    __table_args__ = (UniqueConstraint("escalation_id", "run_id"),)

    escalation_id: Mapped[int] = mapped_column(ForeignKey("escalations.id"), index=True)
    run_id: Mapped[str]
    answer: Mapped[str]
    person: Mapped[str | None]
    comment: Mapped[str]


class ActRow(Table):
    """What a person asked for in the UI or on the command line: ``act`` is one of
    `evergreen.ledger.acts.ACTS`. ``key`` names the form or the command that asked, so that one
    sent twice is one act; ``detail`` is what came of it, like a run's id or a version."""

    __tablename__ = "acts"
    __table_args__ = (UniqueConstraint("model", "key"), Index("ix_acts_newest", "model", "id"))

    key: Mapped[str]
    act: Mapped[str]
    person: Mapped[str]
    comment: Mapped[str]
    detail: Mapped[dict[str, Any]]
