"""What the overview shows: one `Row` a model, from the ledger and from Airflow's own tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from airflow.models.dag import DagModel, DagTag
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from evergreen.declaration import METRICS
from evergreen.ledger import overview as asked
from evergreen.ledger.tables import ActRow, AnswerRow, DecisionRow, EscalationRow, PromotionRow
from evergreen.lifecycle.windows import CAUSE_OF
from evergreen.reporting import health_of, promotion_state

#: The DAGs that every model has.
FAMILIES = ("retrain", "ingest", "score", "monitor", "rollback", "bake", "drill", "escalate")
#: How urgent a word of health is: the overview's first order.
URGENCY = (
    "stopped", "degraded", "no version", "drifting", "paused", "not watched yet", "healthy",
)  # fmt: skip


@dataclass(frozen=True)
class Scheduled:
    """What Airflow knows of a model's DAGs.

    :ivar dag_id: the DAG that starts next by its schedule.
    :ivar at: when; None when nothing is scheduled.
    :ivar held: its DAGs that are paused in Airflow.
    """

    dag_id: str | None = None
    at: datetime | None = None
    held: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One model.

    :ivar metric: the primary metric's name, and whether greater is better.
    :ivar now: its value on ``seen``, the newest window judged on labels; ``then`` at promotion.
    :ivar bound: that the metric was judged by in that window, where it is the watched one.
    :ivar beyond: whether performance was surely beyond its bound then.
    :ivar share: of the inputs, by importance, that drifted in the newest window.
    :ivar decided: the time that the last decision is about; ``recorded`` by the wall's clock.
    """

    model: str
    health: str
    priority: str | None = None
    version: str | None = None
    since: datetime | None = None
    state: str | None = None
    metric: str | None = None
    greater_is_better: bool | None = None
    now: float | None = None
    then: float | None = None
    seen: str | None = None
    bound: float | None = None
    beyond: bool = False
    share: float | None = None
    share_bound: float | None = None
    decision: str | None = None
    cause: str | None = None
    decided: datetime | None = None
    recorded: datetime | None = None
    signals: Mapping[str, int] = field(default_factory=dict)
    paused: ActRow | None = None
    next: Scheduled = Scheduled()

    @property
    def worse(self) -> float | None:
        """By how much the metric is worse than at promotion; negative when it is better."""
        if self.now is None or self.then is None:
            return None
        return self.then - self.now if self.greater_is_better else self.now - self.then

    @property
    def urgency(self) -> int:
        """The lower, the sooner a person should look."""
        return URGENCY.index(self.health)


def rows(ledger: Session, names: Sequence[str], scheduled: Mapping[str, Scheduled]) -> list[Row]:
    """The overview's rows, the most urgent first; the same few queries however many models."""
    lives = asked.live(ledger, names)
    decisions = asked.last_decisions(ledger, names)
    stops = asked.last_escalations(ledger, names)
    events = asked.events(ledger, [row.id for row in lives.values()])
    measured = asked.measured(ledger, lives.values())
    primaries = asked.primaries(ledger, lives.values())
    signals = asked.open_signals(ledger, names)
    pauses = asked.pauses(ledger, names)
    found = [
        _row(
            name,
            live=lives.get(name),
            decision=decisions.get(name),
            stop=stops.get(name),
            events=events,
            measured=measured.get(name, []),
            metric=primaries.get(name),
            signals=signals.get(name, {}),
            paused=pauses.get(name),
            scheduled=scheduled.get(name, Scheduled()),
        )
        for name in names
    ]
    return sorted(found, key=lambda row: (row.urgency, row.model))


def _row(
    name: str,
    *,
    live: PromotionRow | None,
    decision: DecisionRow | None,
    stop: tuple[EscalationRow, list[AnswerRow]] | None,
    events: Mapping[int, set[str]],
    measured: Sequence[asked.Measured],
    metric: str | None,
    signals: Mapping[str, int],
    paused: ActRow | None,
    scheduled: Scheduled,
) -> Row:
    escalation, answers = stop or (None, [])
    acknowledged = next((a for a in answers if a.answer == "acknowledged"), None)
    stopped = escalation is not None and acknowledged is None
    seen = next((each for each in measured if each.basis == "realised" and each.judged), None)
    drift = next((each for each in measured if each.kind == "drift" and each.judged), None)
    realised = seen.realised.get(metric) if seen and metric else None
    known = METRICS.get(metric) if metric else None
    return Row(
        model=name,
        health=health_of(
            live=live is not None,
            stopped=stopped,
            paused=paused is not None,
            violates=violates_of(measured),
        ),
        priority=_priority(decision, escalation if stopped else None, acknowledged),
        version=live.version if live else None,
        since=live.as_of if live else None,
        state=promotion_state(events.get(live.id, set())) if live else None,
        metric=metric,
        greater_is_better=known.greater_is_better if known else None,
        now=realised["value"] if realised else None,
        then=seen.reference.get(metric) if seen and metric else None,
        seen=seen.window if seen else None,
        bound=seen.bound if seen and seen.metric == metric else None,
        beyond="performance" in seen.violates if seen else False,
        share=drift.share if drift else None,
        share_bound=drift.share_bound if drift else None,
        decision=decision.action if decision else None,
        cause=decision.cause if decision else None,
        decided=decision.as_of if decision else None,
        recorded=decision.recorded_at if decision else None,
        signals=dict(sorted(signals.items())),
        paused=paused,
        next=scheduled,
    )


def violates_of(measured: Sequence[asked.Measured]) -> set[str] | None:
    """The causes that are beyond their bounds, each in the newest window in which it is judged: by
    labels, performance is judged later than drift. None when nothing is judged yet.

    The same as `evergreen.reporting` finds from all of a model's windows.
    """
    causes: dict[str, dict[str, set[str]]] = {"performance": {}, "drift": {}}
    for each in measured:  # the newest window first
        found = {CAUSE_OF[name] for name in each.violates}
        for cause in found | ({each.kind} if each.judged else set()):
            causes[cause].setdefault(each.window, set()).update(found & {cause})
    newest = [next(iter(windows.values())) for windows in causes.values() if windows]
    return set().union(*newest) if newest else None


def _priority(
    decision: DecisionRow | None, stopped: EscalationRow | None, acknowledged: AnswerRow | None
) -> str | None:
    """What the last decision said, unless a person has answered since."""
    if stopped is not None:
        return stopped.priority
    if decision is None or (acknowledged and acknowledged.recorded_at >= decision.recorded_at):
        return None
    return decision.priority


def scheduled(airflow: Session, permitted: set[str]) -> dict[str, Scheduled]:
    """The models whose retrain DAG a user may read → what Airflow starts next for them."""
    families = [f"%.{family}" for family in FAMILIES]
    found: dict[str, list[Any]] = {}
    query = (
        select(DagModel.dag_id, DagModel.next_dagrun_create_after, DagModel.is_paused)
        .join(DagTag, DagTag.dag_id == DagModel.dag_id)
        .where(DagTag.name == "evergreen", or_(*map(DagModel.dag_id.like, families)))
        .where(~DagModel.is_stale)  # its file is gone: Airflow starts it no more
    )
    for dag_id, at, held in airflow.execute(query):
        model = dag_id.rpartition(".")[0]
        if f"{model}.retrain" in permitted:
            found.setdefault(model, []).append((dag_id, at, held))
    return {model: _next(dags) for model, dags in sorted(found.items())}


def _next(dags: Sequence[tuple[str, datetime | None, bool]]) -> Scheduled:
    due = sorted((at, dag_id) for dag_id, at, held in dags if at is not None and not held)
    held = tuple(sorted(dag_id for dag_id, _, held in dags if held))
    return Scheduled(due[0][1], due[0][0], held) if due else Scheduled(held=held)
