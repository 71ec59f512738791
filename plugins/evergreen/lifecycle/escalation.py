"""Escalate: know when retraining doesn't help, stop it, and keep what a person says to that.

A retrain for performance or drift claims to mend something. It was futile when its candidate
didn't go live, was rolled back, or when the new version's first window shows the same cause
again. Futile retrains in a row raise the priority; at the declared number automatic retraining
stops, as it does when a machine rolls a version back, and only a person's acknowledgement in the
ledger lets it go on. A useful retrain, or windows that are clean again for as long as the trigger
looks back, end the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from evergreen.declaration import Declaration
from evergreen.errors import ConflictError
from evergreen.ledger import records
from evergreen.ledger.tables import AnswerRow, DecisionRow, EscalationRow, PromotionRow
from evergreen.lifecycle.contracts import AnswerName, EscalationAnswer, EscalationReport
from evergreen.lifecycle.windows import (
    WATCHED,
    Watched,
    judged_for,
    obsolete,
    windows_of,
    withdrawn,
)
from evergreen.workspace import Workspace

#: Endings that say nothing about whether retraining helps.
NO_CLAIM = (*records.LOST, "refused", "declined")
#: Why automatic retraining stops: futile retrains in a row, or a rollback by machine.
FUTILE, ROLLBACK = "futile", "rollback"


@dataclass(frozen=True)
class Standing:
    """How a model stands.

    :ivar futile: futile retrains in a row.
    :ivar priority: how urgent it is for a person; None when nothing is wrong.
    :ivar last: the latest futile retrain of the row.
    :ivar stopped: the escalation that nobody has acknowledged; automatic retraining waits for it.
    """

    futile: int
    priority: str | None
    last: DecisionRow | None = None
    stopped: EscalationRow | None = None


def standing(session: Session, declaration: Declaration) -> Standing:
    """Count what was futile since the last acknowledgement."""
    levels = declaration.escalation.levels
    escalation = records.last_escalation(session, declaration.name)
    if escalation is not None and not _acknowledged(session, escalation):
        return Standing(escalation.futile, levels[-1], stopped=escalation)
    since = _spoken_for(session, escalation) if escalation else 0
    row = _futile_row(session, declaration, since)
    if row:
        return Standing(len(row), levels[min(len(row), len(levels) - 1)], last=row[0])
    return Standing(0, levels[0] if _anything_open(session, declaration) else None)


def review(session: Session, declaration: Declaration, as_of: datetime) -> EscalationRow | None:
    """Stop automatic retraining when it was futile too often; once per row of futile retrains.

    :returns: the escalation, when it was opened just now.
    """
    now, limit = standing(session, declaration), declaration.escalation.futile_retrains
    if now.stopped is not None or now.last is None or now.futile < limit:
        return None
    row = EscalationRow(
        model=declaration.name,
        cause=FUTILE,
        decision_id=now.last.id,
        as_of=as_of,
        priority=declaration.escalation.levels[-1],
        futile=now.futile,
        reason=_why(session, now),
    )
    return records.put(session, row, "model", "decision_id", "cause")


def open_escalation(declaration: Declaration, workspace: Workspace) -> EscalationReport | None:
    """Why automatic retraining has stopped; None when it hasn't."""
    with workspace.ledger.read() as session:
        stopped = standing(session, declaration).stopped
        if stopped is None:
            return None
        decision = session.get_one(DecisionRow, stopped.decision_id)
        answers = tuple(row.answer for row in records.answers_to(session, stopped.id))
    return EscalationReport.model_validate(
        {
            "model": declaration.name,
            "id": stopped.id,
            "cause": stopped.cause,
            "run_id": decision.run_id,
            "as_of": stopped.as_of,
            "priority": stopped.priority,
            "futile": stopped.futile,
            "reason": stopped.reason,
            "answers": answers,
        }
    )


def answer(
    declaration: Declaration,
    workspace: Workspace,
    escalation_id: int,
    *,
    run_id: str,
    answer: AnswerName,
    person: str | None,
    comment: str,
) -> EscalationAnswer:
    """Keep what was said to an escalation; once per ``run_id``.

    :raises ConflictError: when there is no such escalation of this model.
    """
    with workspace.ledger.write() as session:
        found = session.get(EscalationRow, escalation_id)
        if found is None or found.model != declaration.name:
            raise ConflictError(
                f"{declaration.name} has no escalation {escalation_id}; nothing was recorded. "
                f"`evergreen status {declaration.name}` says whether one is open."
            )
        row = AnswerRow(
            model=declaration.name,
            escalation_id=escalation_id,
            run_id=run_id,
            answer=answer,
            person=person,
            comment=comment,
        )
        row = records.put(session, row, "escalation_id", "run_id")
    return EscalationAnswer.model_validate(
        {
            "model": declaration.name,
            "escalation": escalation_id,
            "run_id": row.run_id,
            "answer": row.answer,
            "person": row.person,
            "comment": row.comment,
        }
    )


def was_futile(session: Session, declaration: Declaration, decision: DecisionRow) -> bool | None:
    """Whether a retrain mended what had caused it; None while that can't be said.

    A retrain for another cause claims to mend nothing: it can be useful, never futile.
    """
    outcome = records.outcome_of(session, decision.id)
    if outcome is None or outcome.outcome in NO_CLAIM:
        return None
    promotion = records.promotion_of(session, declaration.name, decision.run_id)
    if promotion is None or _rolled_back(session, promotion):
        return True if decision.cause in WATCHED else None
    windows = windows_of(session, promotion)
    if decision.cause in WATCHED:
        judged = judged_for(windows, decision.cause)
        return decision.cause in judged[0].violates if judged else None
    clean = [w for w in windows if w.judged and not w.violates]
    return False if clean and clean[0] is windows[0] else None


def _futile_row(session: Session, declaration: Declaration, since: int) -> list[DecisionRow]:
    """The futile retrains in a row, the newest first; only of decisions after ``since``."""
    row: list[DecisionRow] = []
    for decision in records.retrains(session, declaration.name):
        if decision.id <= since:
            break
        futile = was_futile(session, declaration, decision)
        if futile is False or (futile and _went_away(session, declaration, decision)):
            break
        row += [decision] if futile else []
    return row


def _went_away(session: Session, declaration: Declaration, decision: DecisionRow) -> bool:
    """Whether, some time after a futile retrain, the cause was gone for as long as its trigger
    looks back."""
    live = records.champion(session, declaration.name)
    trigger = getattr(declaration.triggers, decision.cause or "", None)
    if live is None or trigger is None or decision.cause is None:
        return False
    later: list[Watched] = [
        window
        for window in judged_for(windows_of(session, live), decision.cause)
        if window.start >= decision.as_of
    ]
    clean = [decision.cause not in window.violates for window in later]
    return any(all(clean[i : i + trigger.of]) for i in range(len(clean) - trigger.of + 1))


def _anything_open(session: Session, declaration: Declaration) -> bool:
    live: PromotionRow | None = records.champion(session, declaration.name)
    windows = windows_of(session, live) if live else []
    signals = records.open_signals(session, declaration.name)
    return any(
        s.cause in WATCHED and obsolete(s, live, windows) is None and not withdrawn(s, windows)
        for s in signals
    )


def _rolled_back(session: Session, promotion: PromotionRow) -> bool:
    """Whether just this promotion was undone: whatever its windows show, it mended nothing."""
    left = records.quarantined(session, promotion.model).get(promotion.version)
    return left is not None and left.promotion_id == promotion.id


def _spoken_for(session: Session, escalation: EscalationRow) -> int:
    """The last decision that an acknowledgement is about; futile ones are counted after it.

    A rollback is escalated with the decision that put its version live, which may be long ago.
    """
    if escalation.cause != ROLLBACK:
        return escalation.decision_id
    past = records.retrains(session, escalation.model)
    return max([escalation.decision_id, *(r.id for r in past if r.as_of <= escalation.as_of)])


def _acknowledged(session: Session, escalation: EscalationRow) -> bool:
    return any(row.answer == "acknowledged" for row in records.answers_to(session, escalation.id))


def _why(session: Session, now: Standing) -> str:
    assert now.last is not None  # noqa: S101 - review has asked
    promotion = records.promotion_of(session, now.last.model, now.last.run_id)
    outcome = records.outcome_of(session, now.last.id)
    if promotion is None:
        ended = f"its candidate was not promoted ({outcome.outcome if outcome else 'no outcome'})"
    elif _rolled_back(session, promotion):
        ended = f"version {promotion.version} went live and was rolled back"
    else:
        ended = f"version {promotion.version} went live and shows {now.last.cause} again"
    return (
        f"{now.futile} retrains in a row for {now.last.cause} did not help; of the last one, "
        f"{now.last.run_id}, {ended}. Look at the data and the labels: retraining can't mend this."
    )
