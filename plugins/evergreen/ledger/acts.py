"""What people asked for, and whether automatic retraining is paused.

An act is written once per key: a form sent twice, or a command's transaction tried again, is one
act. Pausing is the newest of two acts, ``pause`` and ``resume``, by the order in which they were
written and not by any clock; so it is in the same ledger, and in the same order, as the decisions
that it holds back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from sqlalchemy import select
from sqlalchemy.orm import Session

from evergreen.errors import ConflictError, RefusalError
from evergreen.ledger import records
from evergreen.ledger.tables import ActRow

Act = Literal[
    "retrain", "roll_back", "acknowledge", "decline", "pause", "resume", "try", "end_trial"
]
ACTS: tuple[str, ...] = get_args(Act)


def act(
    session: Session,
    model: str,
    key: str,
    act: Act,
    person: str,
    comment: str,
    detail: Mapping[str, Any] | None = None,
) -> ActRow:
    """Record what a person asked for; once per ``key``.

    :param key: of the form or command that asked; the same when it is sent again.
    :param detail: what came of it, as JSON: ``run_id``, ``version``.
    :returns: the row of ``key``; that of the first time, when it was asked before.
    :raises ValueError: when there is no such act.
    :raises ConflictError: when ``key`` is already of another act or person.
    """
    if act not in ACTS:
        raise ValueError(f"{act!r} is no act; there are: {', '.join(ACTS)}")
    records.lock(session, model)  # so that ids are in the order in which acts became visible
    row = ActRow(
        model=model, key=key, act=act, person=person, comment=comment, detail=dict(detail or {})
    )
    found = records.put(session, row, "model", "key")
    if (found.act, found.person) != (act, person):
        raise ConflictError(
            f"{model}: the key {key} is already of {found.person}'s {found.act!r}, so {person}'s "
            f"{act!r} was not recorded. Load the page anew, or run the command anew: each form "
            "and each command has a key of its own."
        )
    return found


def acts_of(session: Session, model: str, limit: int | None = 50) -> Sequence[ActRow]:
    """What people asked of a model, the newest first.

    :param limit: how many at most; all when None.
    """
    rows = select(ActRow).where(ActRow.model == model).order_by(ActRow.id.desc()).limit(limit)
    return session.scalars(rows).all()


def pause_of(session: Session, model: str) -> ActRow | None:
    """The pause that holds automatic retraining back; None when none does."""
    rows = select(ActRow).where(ActRow.model == model, ActRow.act.in_(("pause", "resume")))
    newest = session.scalar(rows.order_by(ActRow.id.desc()).limit(1))
    return newest if newest is not None and newest.act == "pause" else None


def pause(session: Session, model: str, *, key: str, person: str, comment: str) -> ActRow:
    """Hold automatic retraining back, unless it is held back already.

    :returns: the pause of ``key``; or the one that holds already, then nothing is recorded.
    :raises RefusalError: when ``comment`` doesn't say why.
    :raises ConflictError: see `act`.
    """
    if not comment.strip():
        raise RefusalError(
            f"{model} was not paused: the comment is empty. Say why; whoever finds the model "
            "paused reads it."
        )
    records.lock(session, model)
    holds = pause_of(session, model)
    if holds is not None and not _known(session, model, key):
        return holds
    return act(session, model, key, "pause", person, comment)


def resume(session: Session, model: str, *, key: str, person: str, comment: str) -> ActRow | None:
    """Let automatic retraining go on.

    :returns: the act of ``key``; None when nothing was paused, then nothing is recorded.
    :raises ConflictError: see `act`.
    """
    records.lock(session, model)
    if pause_of(session, model) is None and not _known(session, model, key):
        return None
    return act(session, model, key, "resume", person, comment)


def _known(session: Session, model: str, key: str) -> bool:
    """Whether a form or command has been heard before."""
    same = select(ActRow.id).where(ActRow.model == model, ActRow.key == key)
    return session.scalar(same) is not None
