"""Roll back: an earlier version goes live again, and the one it replaces is quarantined.

A rollback is a promotion of its own in the ledger, written in one transaction with the quarantine
and, when a machine asked, with the escalation that stops automatic retraining until a person has
looked. What follows the row is carried out as after every promotion, so a rollback that is killed
anywhere is healed by asking again with the same ``run_id``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from evergreen.declaration import Declaration
from evergreen.errors import ConflictError, RollbackError
from evergreen.ledger import records
from evergreen.ledger.tables import DecisionRow, EscalationRow, PromotionRow, QuarantineRow
from evergreen.lifecycle import escalation, golive
from evergreen.lifecycle.contracts import Rollback
from evergreen.workspace import Workspace

KIND = "rollback"


@dataclass(frozen=True)
class _Asked:
    """Who wants what undone, and why."""

    run_id: str
    reason: str
    person: str | None
    version: str | None
    force: bool
    position: int | None


def roll_back(
    declaration: Declaration,
    workspace: Workspace,
    *,
    run_id: str,
    reason: str,
    person: str | None = None,
    version: str | None = None,
    force: bool = False,
    position: int | None = None,
) -> Rollback:
    """Return to an earlier version.

    :param run_id: unique for each asking; asking again with it goes on with the same rollback.
    :param person: who asks; None is the machine, which also asks a person to look.
    :param version: to which version; the last verified one when None.
    :param force: even if that version is quarantined; only a person may.
    :param position: of the promotion that is to be undone; whichever is live when None.
    :raises RollbackError: when there is nothing to go back from or to, or not to that version.
    :raises ConflictError: when another promotion than the one at ``position`` is live, or became
        live at the same moment.
    :raises ServingError: when a replica refuses the version; the ledger's row stays.
    :raises UnavailableError: when a replica doesn't report the version in time.
    """
    asked = _Asked(run_id, reason.strip(), person, version, force, position)
    _check(declaration.name, asked)
    row = _compare_and_set(declaration, workspace, asked)
    carried = golive.carry_out(declaration, workspace, row)
    return _report(workspace, row, carried.server)


def disproved(declaration: Declaration, workspace: Workspace) -> tuple[PromotionRow, str] | None:
    """The newest promotion whose version baking has disproved, live or not; and why."""
    with workspace.ledger.read() as session:
        for row in _promotions(session, declaration.name):
            found = records.events_of(session, row.id).get("disproved")
            if found is not None:
                return row, f"disproved by {found.get('part')}: {found.get('reason')}"
    return None


def _check(model: str, asked: _Asked) -> None:
    if not asked.reason:
        raise RollbackError(f"{model}: a rollback needs a reason, which the ledger keeps.")
    if asked.force and asked.person is None:
        raise RollbackError(
            f"{model}: only a person may force a quarantined version live again; no person is named."
        )


def _compare_and_set(declaration: Declaration, workspace: Workspace, asked: _Asked) -> PromotionRow:
    """The rollback's row, quarantine and escalation: all of them, once, or nothing."""
    model = declaration.name
    try:
        with workspace.ledger.write() as session:
            records.lock(session, model)
            if (done := records.promotion_of(session, model, asked.run_id)) is not None:
                return _same(done)
            live = _live(session, model, asked)
            if _meant(session, live, asked):
                return live
            target = _target(session, model, live, asked)
            return _write(session, declaration, live, target, asked)
    except IntegrityError:  # a promotion was written between our look and our write
        with workspace.ledger.read() as session:
            if (done := records.promotion_of(session, model, asked.run_id)) is not None:
                return _same(done)
            raise _conflict(model, asked, records.champion(session, model)) from None


def _same(row: PromotionRow) -> PromotionRow:
    if row.kind != KIND:
        raise RollbackError(
            f"{row.model}: {row.run_id} put version {row.version} live and is no rollback; ask "
            "with a run_id of its own."
        )
    return row


def _live(session: Session, model: str, asked: _Asked) -> PromotionRow:
    live = records.champion(session, model)
    if live is None:
        raise RollbackError(f"{model}: no version is live, so there is nothing to roll back.")
    if asked.position is not None and live.position != asked.position:
        raise _conflict(model, asked, live)
    return live


def _meant(session: Session, live: PromotionRow, asked: _Asked) -> bool:
    """Whether what is asked for has been written already, by another asking, and isn't carried out.

    A person who asks twice, or just after the machine, means one rollback: without a version the
    second must not go on to the one before.

    :raises RollbackError: when the version that is live came back by a rollback that is complete,
        and none is named.
    """
    if live.kind != KIND or asked.person is None:  # the machine says which promotion it means
        return False
    if "completed" not in records.events_of(session, live.id):
        return asked.version in {None, live.version}
    if asked.version is None:
        raise RollbackError(
            f"{live.model}: version {live.version} has come back already: {live.person or 'the machine'} "
            f"rolled back to it from version {live.replaced} ({live.reason}). Nothing was changed; to "
            f"go further back name a version; there are {_known(session, live.model)}."
        )
    return False


def _conflict(model: str, asked: _Asked, live: PromotionRow | None) -> ConflictError:
    now = f"version {live.version}, by {live.run_id}" if live else "none"
    return ConflictError(
        f"{model}: {asked.run_id} wanted to roll back because: {asked.reason}. But another version "
        f"went live since; live is now {now}. Nothing was changed; ask again if that one is meant."
    )


def _target(session: Session, model: str, live: PromotionRow, asked: _Asked) -> PromotionRow:
    if asked.version is None:
        target = records.last_verified(session, model, besides=[live.version])
        if target is None:
            raise RollbackError(
                f"{model}: there is no version to go back to: besides version {live.version}, "
                f"which is live, none is verified and free of quarantine; there are "
                f"{_known(session, model)}. Nothing was changed; name one with --version, or in "
                f"the form of {model}.rollback, to go back to it all the same."
            )
        return target
    named = records.promotion_of_version(session, model, asked.version)
    if named is None:
        raise RollbackError(
            f"{model}: version {asked.version} was never live; those that were are "
            f"{_known(session, model)}. Only what a gate has let through can come back."
        )
    if named.version == live.version:
        raise RollbackError(f"{model}: version {live.version} is live already; name another one.")
    why = records.quarantined(session, model).get(named.version)
    if why is not None and not asked.force:
        raise RollbackError(
            f"{model}: version {named.version} is quarantined since {why.run_id}, by "
            f"{why.person or 'the machine'}: {why.reason}. Nothing was changed; a person may "
            "override that with `force`."
        )
    return named


def _known(session: Session, model: str) -> str:
    """Every version that was live, and how it stands; the newest first."""
    barred = records.quarantined(session, model)
    versions = dict.fromkeys(row.version for row in _promotions(session, model))

    def standing(version: str) -> str:
        if version in barred:
            return "quarantined"
        return "verified" if _verified(session, model, version) else "not verified"

    return ", ".join(f"{version} ({standing(version)})" for version in versions)


def _verified(session: Session, model: str, version: str) -> bool:
    """Whether a version was verified at any of its promotions, and isn't quarantined."""
    if version in records.quarantined(session, model):
        return False
    theirs = [row for row in _promotions(session, model) if row.version == version]
    return any("verified" in records.events_of(session, row.id) for row in theirs)


def _promotions(session: Session, model: str) -> Iterator[PromotionRow]:
    """Every promotion, the newest first."""
    row = records.champion(session, model)
    while row is not None:  # positions fall, so it ends
        yield row
        row = records.former(session, row)


def _write(
    session: Session,
    declaration: Declaration,
    live: PromotionRow,
    target: PromotionRow,
    asked: _Asked,
) -> PromotionRow:
    model = declaration.name
    before = escalation.standing(session, declaration)
    verified = _verified(session, model, target.version)
    # A rollback is never before what it replaces, even where that was promoted ahead of the data.
    watermark = records.watermark(session, model) or live.as_of
    row = PromotionRow(
        model=model,
        position=live.position + 1,
        run_id=asked.run_id,
        version=target.version,
        replaced=live.version,
        kind=KIND,
        reason=asked.reason,
        as_of=max(watermark, live.as_of),
        mlflow_run=target.mlflow_run,
        model_uri=target.model_uri,
        snapshot_uri=target.snapshot_uri,
        snapshot_digest=target.snapshot_digest,
        trained_through=target.trained_through,
        origin=target.origin,
        person=asked.person,
    )
    session.add(row)
    session.flush()
    left = QuarantineRow(
        model=model,
        version=live.version,
        promotion_id=live.id,
        run_id=asked.run_id,
        person=asked.person,
        reason=asked.reason,
    )
    records.put(session, left, "model", "version")
    if verified:
        records.add_event(session, row, "verified", {"by": "earlier"})
    if asked.person is None:
        _escalate(session, declaration, live, row, before)
    return row


def _escalate(
    session: Session,
    declaration: Declaration,
    live: PromotionRow,
    row: PromotionRow,
    before: escalation.Standing,
) -> None:
    """Stop automatic retraining until a person has looked at what a machine undid."""
    earlier = before.stopped.reason if before.stopped else None
    reason = (
        f"version {live.version} was rolled back by machine, to version {row.version}: "
        f"{row.reason.rstrip('.')}. It had passed its gate, so look at what differs at work: the "
        f"log of the task that disproved it, the rows it answered since "
        f"{live.as_of.isoformat()}, and what changed after {live.trained_through.isoformat()}, "
        "through which it learned. A retrain may make the same version again."
        + (f" Automatic retraining had stopped before that, too: {earlier}" if earlier else "")
    )
    for decision in _decisions(session, declaration, live, row, before):
        stop = EscalationRow(
            model=row.model,
            cause=escalation.ROLLBACK,
            decision_id=decision.id,
            as_of=row.as_of,
            priority=declaration.escalation.levels[-1],
            futile=before.futile,
            reason=reason,
        )
        if records.put(session, stop, "model", "decision_id", "cause") is stop:
            return


def _decisions(
    session: Session,
    declaration: Declaration,
    live: PromotionRow,
    row: PromotionRow,
    before: escalation.Standing,
) -> Iterator[DecisionRow]:
    """What an escalation may be about: the decision that put the version live, the newest retrain.

    Each can be about one rollback only. So the last one is the rollback's own, written down when
    it comes to that: an escalation that was acknowledged long ago must not hide this one.
    """
    theirs = records.decision_of(session, row.model, live.run_id)
    yield from [theirs] if theirs else []
    yield from records.retrains(session, row.model)[:1]
    own = DecisionRow(
        model=row.model,
        run_id=row.run_id,
        action=KIND,
        cause=None,
        causes=[],
        reasons=[row.reason],
        as_of=row.as_of,
        sequence=records.sequence(session, row.model),
        tune=False,
        futile=before.futile,
        priority=declaration.escalation.levels[-1],
    )
    yield records.put(session, own, "model", "run_id")


def _report(workspace: Workspace, row: PromotionRow, server: str) -> Rollback:
    """The same for a repeat: nothing in it changes once the row is written."""
    with workspace.ledger.read() as session:
        events = records.events_of(session, row.id)
        barred = records.quarantined(session, row.model)
    return Rollback(
        model=row.model,
        version=row.version,
        replaced=row.replaced or "",
        position=row.position,
        as_of=row.as_of,
        reason=row.reason,
        person=row.person,
        quarantined=row.replaced in barred,
        verified=events.get("verified", {}).get("by") == "earlier",
        server=server,
    )
