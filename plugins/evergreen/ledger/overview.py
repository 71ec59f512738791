"""What the ledger says of many models at once: as many queries for five hundred as for five.

Each statement looks up every model's newest row by an index, so what a page costs grows with the
number of models and not with their histories. Longer than most: all such statements are here, so
that they can be counted together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import CTE, Text, and_, cast, column, exists, func, or_, select, values
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from evergreen.ledger.records import LOST
from evergreen.ledger.tables import (
    ActRow,
    AnswerRow,
    ConsumedSignalRow,
    DecisionRow,
    EscalationRow,
    MeasurementRow,
    OutcomeRow,
    PromotionEventRow,
    PromotionRow,
    SignalRow,
    Table,
    VerdictRow,
)

Row = TypeVar("Row", bound=Table)
#: Of each live version's measurements, the newest of these speak for it; see `_newest_judged`.
SPEAK = ("drift", "performance", "realised", "labels")
_FEW = 20  # models that are asked for by name
_LATE = 1_000  # windows back to which one judged by labels is looked for
_AT_ONCE = 5_000  # identifiers in one statement: SQLite takes 32,766 variables


@dataclass(frozen=True)
class Measured:
    """A window that a live version answered.

    :ivar violates: what is beyond its bound.
    :ivar share: drifted inputs by importance, of ``drift``; ``share_bound`` is the most allowed.
    :ivar basis: what ``performance`` was judged by: ``realised`` labels, or ``estimated``.
    :ivar realised: metric → value and interval, of ``performance``.
    :ivar reference: metric → value at promotion, of ``performance``.
    :ivar bound: that ``metric``, the watched one, was judged by.
    """

    kind: str
    window: str
    end: datetime
    judged: bool
    violates: tuple[str, ...]
    share: float | None = None
    share_bound: float | None = None
    basis: str | None = None
    realised: dict[str, Any] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    metric: str | None = None
    bound: float | None = None


def live(session: Session, names: Collection[str]) -> dict[str, PromotionRow]:
    """Model → the promotion whose version is live."""
    rows = _newest(session, PromotionRow, PromotionRow.position, names)
    return {row.model: row for row in rows}


def last_decisions(session: Session, names: Collection[str]) -> dict[str, DecisionRow]:
    """Model → its last decision."""
    return {row.model: row for row in _newest(session, DecisionRow, DecisionRow.id, names)}


def last_escalations(
    session: Session, names: Collection[str]
) -> dict[str, tuple[EscalationRow, list[AnswerRow]]]:
    """Model → the last time automatic retraining stopped, and what was answered."""
    rows = {row.id: row for row in _newest(session, EscalationRow, EscalationRow.id, names)}
    answers: dict[int, list[AnswerRow]] = {}
    for said in _where_in(session, AnswerRow, AnswerRow.escalation_id, rows):
        answers.setdefault(said.escalation_id, []).append(said)
    return {row.model: (row, answers.get(row.id, [])) for row in rows.values()}


def events(session: Session, promotions: Collection[int]) -> dict[int, set[str]]:
    """Promotion → how far it has come."""
    found: dict[int, set[str]] = {}
    for some in _batches(promotions):
        rows = select(PromotionEventRow.promotion_id, PromotionEventRow.event)
        for promotion, event in session.execute(
            rows.where(PromotionEventRow.promotion_id.in_(some))
        ):
            found.setdefault(promotion, set()).add(event)
    return found


def measured(session: Session, promotions: Collection[PromotionRow]) -> dict[str, list[Measured]]:
    """Model → the newest windows by which each of its causes is judged, the newest window first."""
    found: dict[str, list[Measured]] = {}
    evidence = MeasurementRow.evidence
    for some in _batches(_newest_judged(session, promotions)):
        rows = (
            select(
                MeasurementRow.model,
                MeasurementRow.kind,
                MeasurementRow.window,
                MeasurementRow.end,
                MeasurementRow.judged,
                MeasurementRow.violates,
                evidence["share"].as_float().label("share"),
                evidence["share_bound"].as_float().label("share_bound"),
                evidence["basis"].as_string().label("basis"),
                evidence["realised"].as_json().label("realised"),
                evidence["reference"].as_json().label("reference"),
                evidence["metric"].as_string().label("metric"),
                evidence["bound"].as_float().label("bound"),
            )
            .where(MeasurementRow.id.in_(some))
            .order_by(MeasurementRow.end.desc(), MeasurementRow.id)
        )
        for row in session.execute(rows):
            known = row.reference if isinstance(row.reference, dict) else {}  # of drift, a digest
            found.setdefault(row.model, []).append(
                Measured(
                    row.kind, row.window, row.end, row.judged, tuple(row.violates), row.share,
                    row.share_bound, row.basis, row.realised or {}, known, row.metric, row.bound,
                )
            )  # fmt: skip
    return found


def primaries(session: Session, promotions: Collection[PromotionRow]) -> dict[str, str]:
    """Model → the metric by which its live version was judged."""
    found: dict[str, str] = {}
    judged = and_(
        VerdictRow.model == PromotionRow.model, VerdictRow.mlflow_run == PromotionRow.mlflow_run
    )
    for some in _batches([row.id for row in promotions]):
        rows = (
            select(PromotionRow.model, VerdictRow.evidence["primary"].as_string())
            .join(VerdictRow, judged)
            .where(PromotionRow.id.in_(some))
        )
        found |= {model: metric for model, metric in session.execute(rows) if metric}
    return found


def pauses(session: Session, names: Collection[str]) -> dict[str, ActRow]:
    """Model → the act of the person who has paused its automatic retraining."""
    toggles = ActRow.act.in_(("pause", "resume"))
    found: dict[str, ActRow] = {}
    for some in _batches(names):
        newest = select(func.max(ActRow.id)).where(ActRow.model.in_(some), toggles)
        rows = select(ActRow).where(ActRow.id.in_(newest.group_by(ActRow.model)))
        found |= {row.model: row for row in session.scalars(rows) if row.act == "pause"}
    return found


def open_signals(session: Session, names: Collection[str]) -> dict[str, Counter[str]]:
    """Model → how many signals of each cause no decision has answered, or only a lost one.

    What `records.open_signals` finds for each. A retrain answers every signal that is open when it
    is decided, so only those raised since the last one that wasn't lost are looked at.
    """
    found: dict[str, Counter[str]] = {}
    wanted = set(names)
    for some in _batches(names):
        anchor = _anchor(SignalRow, some)
        decision, taken = aliased(DecisionRow), aliased(ConsumedSignalRow)
        last = (
            select(decision.id)
            .where(decision.model == anchor.c.model, decision.action == "retrain")
            .where(~_lost(decision.id))
            .order_by(decision.id.desc())
            .limit(1)
            .correlate(anchor)
            .scalar_subquery()
        )
        since = select(func.min(taken.signal_id)).where(taken.decision_id == last)
        answered = exists().where(
            ConsumedSignalRow.signal_id == SignalRow.id, ~_lost(ConsumedSignalRow.decision_id)
        )
        rows = (
            select(SignalRow.model, SignalRow.cause, func.count())
            .select_from(anchor)
            .join(SignalRow, SignalRow.model == anchor.c.model)
            .where(SignalRow.id >= func.coalesce(since.scalar_subquery(), 0), ~answered)
            .group_by(SignalRow.model, SignalRow.cause)
        )
        for model, cause, count in session.execute(rows):
            if model in wanted:
                found.setdefault(model, Counter())[cause] = count
    return found


def _lost(decision_id: Any) -> Any:
    """Whether a decision's run ended only in outcomes that gave nothing."""
    bad, good = aliased(OutcomeRow), aliased(OutcomeRow)
    return and_(
        exists().where(bad.decision_id == decision_id, bad.outcome.in_(LOST)),
        ~exists().where(good.decision_id == decision_id, good.outcome.not_in(LOST)),
    )


def _newest(
    session: Session, table: type[Row], order: InstrumentedAttribute[int], names: Collection[str]
) -> list[Row]:
    """Each model's row that is highest in some order."""
    found: list[Row] = []
    wanted = set(names)
    for some in _batches(names):
        anchor, other = _anchor(table, some), aliased(table)
        top = (
            select(other.id)
            .where(other.model == anchor.c.model)
            .order_by(getattr(other, order.key).desc())
            .limit(1)
            .scalar_subquery()
        )
        rows = session.scalars(select(table).where(table.id.in_(select(top).select_from(anchor))))
        found += [row for row in rows if row.model in wanted]
    return found


def _newest_judged(session: Session, promotions: Collection[PromotionRow]) -> list[int]:
    """Each live version's newest measurements, by the end of their windows: of drift; of
    performance; of performance by realised labels, which come late; and one by which labels or
    errors drift, judged by itself or not."""
    found: set[int] = set()
    named = cast(MeasurementRow.violates, Text)
    later, other = aliased(MeasurementRow), aliased(MeasurementRow)
    again = exists().where(  # the latest measurement of a window speaks for it
        later.model == MeasurementRow.model,
        later.version == MeasurementRow.version,
        later.kind == MeasurementRow.kind,
        later.window == MeasurementRow.window,
        later.id > MeasurementRow.id,
    )
    by_drift = and_(other.kind == "drift", or_(other.judged, cast(other.violates, Text) != "[]"))
    drifted = (
        select(other.end)
        .where(other.model == PromotionRow.model, other.version == PromotionRow.version, by_drift)
        .order_by(other.end.desc())
        .limit(1)
        .correlate(PromotionRow)
        .scalar_subquery()
    )
    behind = (
        select(other.end)
        .where(other.model == PromotionRow.model, other.version == PromotionRow.version)
        .where(other.kind == "performance")
        .order_by(other.end.desc())
        .offset(_LATE)
        .limit(1)
        .correlate(PromotionRow)
        .scalar_subquery()
    )
    speak = {
        "drift": and_(MeasurementRow.kind == "drift", or_(MeasurementRow.judged, named != "[]")),
        "performance": and_(MeasurementRow.kind == "performance", MeasurementRow.judged),
        "realised": and_(
            MeasurementRow.kind == "performance",
            MeasurementRow.judged,
            MeasurementRow.end > func.coalesce(behind, PromotionRow.as_of),
            MeasurementRow.evidence["basis"].as_string() == "realised",
        ),
        "labels": and_(  # of windows after those, or of the newest: not all need be looked at
            MeasurementRow.kind == "performance",
            MeasurementRow.end >= func.coalesce(drifted, PromotionRow.as_of),
            named.not_in(("[]", '["performance"]')),
        ),
    }
    for some in _batches([row.id for row in promotions]):
        each = [
            select(MeasurementRow.id)
            .where(
                MeasurementRow.model == PromotionRow.model,
                MeasurementRow.version == PromotionRow.version,
                speak[which],
                ~again,
                MeasurementRow.start >= PromotionRow.as_of,
            )
            .order_by(MeasurementRow.end.desc(), MeasurementRow.id.desc())
            .limit(1)
            .correlate(PromotionRow)
            .scalar_subquery()
            for which in SPEAK
        ]
        for keys in session.execute(select(*each).where(PromotionRow.id.in_(some))):
            found |= {key for key in keys if key is not None}
    return sorted(found)


def _anchor(table: type[Table], names: Sequence[str]) -> CTE:
    """The models to look up: a few by name; many as all that the table has, in a statement that is
    the same however many there are, so that it is compiled once."""
    if len(names) > _FEW:
        return _models_of(table)
    return values(column("model", Text)).data([(name,) for name in names]).cte("names")


def _models_of(table: type[Table]) -> CTE:
    """A table's models, and a null at the end; jumps from name to name on an index."""
    names = select(func.min(table.model).label("model")).cte("names", recursive=True)
    later = select(func.min(table.model)).where(table.model > names.c.model).scalar_subquery()
    return names.union_all(select(later).where(names.c.model.is_not(None)))


def _where_in(
    session: Session, table: type[Row], key: InstrumentedAttribute[int], ids: Collection[int]
) -> list[Row]:
    rows: list[Row] = []
    for some in _batches(ids):
        rows += session.scalars(select(table).where(key.in_(some)).order_by(table.id))
    return rows


def _batches(every: Collection[Any]) -> Iterator[tuple[Any, ...]]:
    rows = list(every)
    for start in range(0, len(rows), _AT_ONCE):
        yield tuple(rows[start : start + _AT_ONCE])
