"""Arbitrate: read all open signals and decide whether to retrain.

The arbiter is a pure function of a `Situation`: what is asked for, what happened before, and
the declaration's triggers. The decision, its reasons and the signals it consumed are one ledger
transaction, keyed by the DAG run, so a repeat finds the first answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from croniter import croniter
from sqlalchemy.orm import Session

from evergreen.declaration import Declaration, format_duration
from evergreen.declaration.schema import Budget
from evergreen.ledger import records
from evergreen.ledger.tables import ConsumedSignalRow, DecisionRow, PartitionRow, SignalRow
from evergreen.lifecycle.contracts import Action, Decision
from evergreen.workspace import Workspace

CAUSES = (
    "manual",
    "performance",
    "drift",
    "new_data",
    "schedule",
)  # the first one present names a run
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Situation:
    """What the arbiter knows when it decides.

    :ivar as_of: the moment it decides for.
    :ivar causes: causes with an open signal.
    :ivar new_rows: labelled rows that matured since the last training.
    :ivar trained: when the trainings so far were decided, ascending; for the cooldown.
    :ivar spent: when automatic retrains were decided, ascending, whatever became of them.
    :ivar in_flight: runs of other decisions that have not ended.
    """

    as_of: datetime
    causes: frozenset[str]
    new_rows: int
    trained: Sequence[datetime] = ()
    spent: Sequence[datetime] = ()
    in_flight: Sequence[str] = ()


@dataclass(frozen=True)
class Answer:
    """What the arbiter says. ``cause`` is set when it says retrain."""

    action: Action
    reasons: tuple[str, ...]
    cause: str | None = None
    until: datetime | None = None


def decide(declaration: Declaration, situation: Situation) -> Answer:
    """Decide, by the declared triggers. Reads nothing but its arguments."""
    if situation.in_flight:
        return Answer("suppress", (f"a retrain is under way: {', '.join(situation.in_flight)}",))
    if not situation.causes:
        return Answer("suppress", ("nothing asks for a retrain",))
    if "manual" in situation.causes:
        return Answer("retrain", ("a person asked: cooldown and budget don't apply",), "manual")
    reasons = [
        _heard(declaration, situation, cause) for cause in CAUSES if cause in situation.causes
    ]
    enough = [cause for cause, sufficient, _ in reasons if sufficient]
    said = tuple(text for _, _, text in reasons)
    if not enough:
        return Answer("suppress", said)
    for until, why in _holds(declaration, situation):
        return Answer("suppress", (*said, why), until=until)
    return Answer("retrain", (*said, *_allowances(declaration, situation)), enough[0])


def arbitrate(
    declaration: Declaration,
    workspace: Workspace,
    *,
    run_id: str,
    as_of: datetime | None = None,
    manual: Mapping[str, Any] | None = None,
    tune: bool = False,
    override: str | None = None,
    run_state: Callable[[str], str | None] = lambda _: "running",
) -> Decision:
    """Decide for one DAG run, once.

    :param run_id: the DAG run; asking again with it returns the first decision.
    :param as_of: the moment to decide for; the data watermark when None.
    :param manual: set when a person asks; kept as the signal's evidence.
    :param run_state: how another run ended (``success``, ``failed``), ``None`` when it is gone,
        ``running`` when it has not ended.
    """
    with workspace.ledger.write() as session:
        records.lock(session, declaration.name)
        row = records.decision_of(session, declaration.name, run_id)
        if row is None:
            _close_ended(session, declaration.name, run_state)
            row = _decide_now(session, declaration, run_id, as_of, manual, tune, override)
    return Decision.from_row(row)


def preview(
    declaration: Declaration, workspace: Workspace, *, run_id: str, as_of: datetime
) -> Decision:
    """What the arbiter would decide now, recorded nowhere."""
    with workspace.ledger.write() as session:
        row = _decide_now(session, declaration, run_id, as_of, None, False, None)
        decision = Decision.from_row(row)
        session.rollback()
    return decision


def conclude(
    declaration: Declaration,
    workspace: Workspace,
    run_id: str,
    *,
    refused: str | None = None,
    declined: str | None = None,
) -> str | None:
    """Record how a retrain's run ended, so that the next one may start.

    A run that ended without a verdict, refusal or a person's word counts as failed: its signals
    are open again.

    :returns: the outcome, or None when the run was no retrain.
    """
    with workspace.ledger.write() as session:
        decision = records.decision_of(session, declaration.name, run_id)
        if decision is None or decision.action != "retrain":
            return None
        known = records.outcome_of(session, decision.id)
        outcome, detail = _ending(session, declaration.name, run_id, refused, declined)
        if outcome == "failed" and known is not None:
            return known.outcome
        records.conclude(session, decision, outcome, detail)
        return outcome


def _ending(
    session: Session, model: str, run_id: str, refused: str | None, declined: str | None
) -> tuple[str, str]:
    promotion = records.promotion_of(session, model, run_id)
    verdict = records.verdict_of(session, model, run_id)
    if promotion is not None:
        return "promoted", f"version {promotion.version}"
    if refused is not None:
        return "refused", refused
    if verdict is not None and not verdict.promotes:
        return verdict.verdict, verdict.reason
    if declined is not None:
        return "declined", declined
    return "failed", "the run ended before a verdict was carried out; its signals are open again"


def _decide_now(
    session: Session,
    declaration: Declaration,
    run_id: str,
    as_of: datetime | None,
    manual: Mapping[str, Any] | None,
    tune: bool,
    override: str | None,
) -> DecisionRow:
    model = declaration.name
    moment = as_of or records.watermark(session, model) or EPOCH
    last = records.sequence(session, model)
    past = records.retrains(session, model)
    kept = [r for r in past if not _ended(session, r, *records.LOST)]
    learned = [r for r in kept if not _ended(session, r, "refused")]  # nothing came of the others
    if manual is not None:
        records.raise_signal(session, model, "manual", run_id, moment, manual)
    _raise_schedule(session, declaration, moment, kept)
    signals = records.open_signals(session, model)
    situation = Situation(
        as_of=moment,
        causes=frozenset(s.cause for s in signals),
        new_rows=_new_rows(session, model, moment, last, learned),
        trained=sorted(r.as_of for r in learned),
        spent=sorted(r.as_of for r in past if r.cause != "manual"),
        in_flight=[r.run_id for r in records.in_flight(session, model)],
    )
    answer = (
        decide(declaration, situation)
        if last
        else Answer("suppress", ("no data is registered; land a partition and ingest it",))
    )
    row = DecisionRow(
        model=model,
        run_id=run_id,
        action=answer.action,
        cause=answer.cause,
        causes=[c for c in CAUSES if c in situation.causes],
        reasons=[*_wishes(signals), *answer.reasons],
        as_of=moment,
        sequence=last,
        until=answer.until,
        tune=tune,
        override=override,
    )
    session.add(row)
    session.flush()
    if answer.action == "retrain":
        session.add_all(
            ConsumedSignalRow(model=model, signal_id=s.id, decision_id=row.id) for s in signals
        )
    return row


def _wishes(signals: Sequence[SignalRow]) -> list[str]:
    """Who asked, and why."""
    asked = [signal.evidence for signal in signals if signal.cause == "manual"]
    return [f"asked by {wish.get('user')}: {wish.get('reason')}" for wish in asked]


def _close_ended(session: Session, model: str, run_state: Callable[[str], str | None]) -> None:
    """A run killed before it could conclude must not hold the model for ever."""
    for decision in records.in_flight(session, model):
        if (state := run_state(decision.run_id)) not in {"running", "queued"}:
            outcome, detail = _ending(session, model, decision.run_id, None, None)
            records.conclude(
                session, decision, outcome, f"{detail} (Airflow says: {state or 'gone'})"
            )


def _ended(session: Session, decision: DecisionRow, *outcomes: str) -> bool:
    outcome = records.outcome_of(session, decision.id)
    return outcome is not None and outcome.outcome in outcomes


def _raise_schedule(
    session: Session, declaration: Declaration, as_of: datetime, kept: Sequence[DecisionRow]
) -> None:
    """The schedule's last tick up to ``as_of``, unless a training came after it."""
    schedule = declaration.triggers.schedule
    if schedule is None or as_of == EPOCH:
        return
    tick = croniter(schedule, as_of + timedelta(seconds=1)).get_prev(datetime)
    if not kept or kept[0].as_of < tick:
        records.raise_signal(
            session, declaration.name, "schedule", tick.isoformat(), as_of, {"schedule": schedule}
        )


def _new_rows(
    session: Session, model: str, as_of: datetime, last: int, learned: Sequence[DecisionRow]
) -> int:
    """Labelled rows known by ``as_of`` that were not known at the last training."""

    def matured(moment: datetime, through: int) -> int:
        rows: Sequence[PartitionRow] = records.latest_partitions(session, model, through)
        return sum(
            count
            for row in rows
            for end, count in row.maturity.items()
            if datetime.fromisoformat(end) <= moment
        )

    before = matured(learned[0].as_of, learned[0].sequence) if learned else 0
    return matured(as_of, last) - before


def _heard(declaration: Declaration, situation: Situation, cause: str) -> tuple[str, bool, str]:
    """Whether a cause is enough by itself, and the sentence that says so."""
    trigger = declaration.triggers.new_data
    if cause == "schedule":
        return cause, True, f"schedule: {declaration.triggers.schedule} is due"
    if cause != "new_data":
        return cause, False, f"{cause}: not a declared trigger"
    if trigger is None:
        return cause, False, "new_data: arrived, but it is not a declared trigger"
    sufficient = situation.new_rows >= trigger.min_rows
    return (
        cause,
        sufficient,
        (
            f"new_data: {situation.new_rows:,} labels matured since the last training, "
            f"{trigger.min_rows:,} needed"
        ),
    )


def _holds(declaration: Declaration, situation: Situation) -> Iterator[tuple[datetime, str]]:
    """What holds a justified retrain back, and until when."""
    triggers = declaration.triggers
    if situation.trained and triggers.cooldown:
        until = max(situation.trained) + triggers.cooldown
        if situation.as_of < until:
            yield until, f"cooldown: {format_duration(triggers.cooldown)} since the last training"
    if triggers.budget:
        recent = _recent(declaration, situation)
        if len(recent) >= triggers.budget.runs:
            until = recent[-triggers.budget.runs] + triggers.budget.per
            yield until, _spent(triggers.budget, recent)


def _allowances(declaration: Declaration, situation: Situation) -> Iterator[str]:
    triggers = declaration.triggers
    if triggers.cooldown and situation.trained:
        yield f"cooldown: {format_duration(triggers.cooldown)}, last training {max(situation.trained).isoformat()}"
    if triggers.budget:
        yield _spent(triggers.budget, _recent(declaration, situation))


def _spent(budget: Budget, recent: Sequence[datetime]) -> str:
    return f"budget: {len(recent)} of {budget.runs} runs spent in {format_duration(budget.per)}"


def _recent(declaration: Declaration, situation: Situation) -> list[datetime]:
    budget = declaration.triggers.budget
    if budget is None:
        return []
    return [
        moment
        for moment in situation.spent
        if situation.as_of - budget.per < moment <= situation.as_of
    ]
