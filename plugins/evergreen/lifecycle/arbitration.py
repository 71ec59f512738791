"""Arbitrate: read all open signals and decide whether to retrain.

What is enough, and what holds it back, is `triggers.decide`; here is what it is given and what
becomes of its answer. The decision, its reasons and the signals it consumed are one ledger
transaction, keyed by the DAG run, so a repeat finds the first answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from croniter import croniter
from sqlalchemy.orm import Session

from evergreen.declaration import Declaration
from evergreen.ledger import acts, records
from evergreen.ledger.tables import (
    ConsumedSignalRow,
    DecisionRow,
    PartitionRow,
    PromotionRow,
    SignalRow,
)
from evergreen.lifecycle import escalation
from evergreen.lifecycle.contracts import Decision
from evergreen.lifecycle.triggers import CAUSES, Answer, Situation, Violated, decide
from evergreen.lifecycle.windows import (
    WATCHED,
    Watched,
    judged_for,
    obsolete,
    windows_of,
    withdrawn,
)
from evergreen.workspace import Workspace

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
        escalation.review(session, declaration, decision.as_of)
        return outcome


def _ending(
    session: Session, model: str, run_id: str, refused: str | None, declined: str | None
) -> tuple[str, str]:
    promotion = records.promotion_of(session, model, run_id)
    verdict = records.verdict_of(session, model, run_id)
    if promotion is not None:
        held = records.quarantined(session, model).get(promotion.version)
        if held is not None:
            return "rolled_back", f"version {promotion.version}: {held.reason}"
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
    escalation.review(session, declaration, moment)
    live = records.champion(session, model)
    disproved = _disproved(session, live)
    restores = records.last_verified(session, model, besides=[live.version]) if live else None
    standing = escalation.standing(session, declaration)
    windows = windows_of(session, live) if live else []
    every = {
        signal: obsolete(signal, live, windows)
        or _lost_wish(session, signal, run_id)
        or _mended(session, signal)
        for signal in records.open_signals(session, model)
    }
    signals = [
        signal for signal, why in every.items() if why is None and not withdrawn(signal, windows)
    ]
    situation = Situation(
        as_of=moment,
        causes=frozenset(s.cause for s in signals if s.cause in CAUSES),
        new_rows=_new_rows(session, model, moment, last, learned),
        violated={cause: _violated(declaration, cause, windows, signals) for cause in WATCHED},
        stopped=standing.stopped.reason if standing.stopped else None,
        paused=_paused(session, model),
        disproved=disproved,
        restores=restores.version if restores else None,
        bootstrapped=live is not None and bool(live.origin),  # without one it can't be watched
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
        reasons=[*_wishes(signals), *_closed(every), *_skewed(signals), *answer.reasons],
        as_of=moment,
        sequence=last,
        until=answer.until,
        tune=tune or (answer.cause in WATCHED and standing.futile > 0),
        override=override,
        futile=standing.futile,
        priority=standing.priority,
    )
    session.add(row)
    session.flush()
    consumed = every if answer.action == "retrain" else [s for s, why in every.items() if why]
    session.add_all(
        ConsumedSignalRow(model=model, signal_id=s.id, decision_id=row.id) for s in consumed
    )
    return row


def _violated(
    declaration: Declaration, cause: str, windows: Sequence[Watched], signals: Sequence[SignalRow]
) -> Violated:
    """The windows that a cause's trigger looks back on, and which of them ask for a retrain."""
    trigger = declaration.triggers.drift if cause == "drift" else declaration.triggers.performance
    if trigger is None:
        return Violated()
    asking = [s for s in signals if s.cause == cause]
    by_window = {s.evidence["window"]: s for s in asking if "window" in s.evidence}
    newest = judged_for(windows, cause)[-trigger.of :]
    others = tuple(s.key for s in asking if "window" not in s.evidence)
    return Violated(
        windows=tuple(window.key for window in newest),
        violating=(*(w.key for w in newest if w.key in by_window), *others),
    )


def _lost_wish(session: Session, signal: SignalRow, run_id: str) -> str | None:
    """A person's wish whose run was lost: the machine doesn't repeat it, past all bounds."""
    if signal.cause != "manual" or signal.key == run_id or not records.answered(session, signal):
        return None
    return f"manual: {signal.key} ended without a verdict; ask again if it is still wanted"


def _paused(session: Session, model: str) -> str | None:
    """Who holds automatic retraining back, and why. Signals stay open: a pause answers none."""
    held = acts.pause_of(session, model)
    return f"paused by {held.person}: {held.comment}" if held else None


def _disproved(session: Session, live: PromotionRow | None) -> str | None:
    """Why baking gave the live version up, when it did."""
    found = records.events_of(session, live.id).get("disproved") if live else None
    return f"version {live.version} was disproved: {found['reason']}" if live and found else None


def _skewed(signals: Sequence[SignalRow]) -> list[str]:
    """Skew between training and serving: said, since no retrain can mend it."""
    return [
        f"skew: {'; '.join(signal.evidence['reasons'])}: retraining can't mend it, and the gate "
        "promotes nothing until it is gone; look at the task materialize of the score DAG, or at "
        "how the feature is made online"
        for signal in signals
        if signal.cause == "skew"
    ][-1:]


def _mended(session: Session, signal: SignalRow) -> str | None:
    """Skew that a newer comparison doesn't show any more."""
    if signal.cause != "skew":
        return None
    judged = [row for row in records.skews(session, signal.model) if row.judged]
    if not judged or judged[-1].violates:
        return None
    return f"skew in {signal.evidence['partition']}: features as served in {judged[-1].partition} agree"


def _closed(signals: Mapping[SignalRow, str | None]) -> list[str]:
    """What is no longer asked for; some of it, when it is much."""
    closed = [why for why in signals.values() if why is not None]
    more = [f"and {len(closed) - 3} more signals closed"] if len(closed) > 3 else []
    return [*(f"closed: {why}" for why in closed[:3]), *more]


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
        rows: Sequence[PartitionRow] = records.latest_partitions(
            session, model, through, source=None
        )
        return sum(
            count
            for row in rows
            for end, count in row.maturity.items()
            if datetime.fromisoformat(end) <= moment
        )

    before = matured(learned[0].as_of, learned[0].sequence) if learned else 0
    return matured(as_of, last) - before
