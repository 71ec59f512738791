"""What is known of a version that bakes: events of its promotion, written once, in one transaction.

All that a look must remember stands there, so whoever is killed goes on, and of two that look at
once one is told what the other found. ``disproved`` is never taken back; ``verified`` follows from
what both parts found, whichever came last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy.orm import Session

from evergreen.declaration import Declaration
from evergreen.ledger import records
from evergreen.ledger.tables import PromotionRow
from evergreen.lifecycle.contracts import BakeOutcome, BakeReport, Origin
from evergreen.lifecycle.estimation import Holdout
from evergreen.workspace import Workspace

Part = Literal["requests", "labels"]
Events = Mapping[str, Mapping[str, Any]]
GOOD: dict[Part, str] = {"requests": "watched", "labels": "proven"}
DISPROVED, VERIFIED = "disproved", "verified"


@dataclass(frozen=True)
class Bake:
    """The live promotion as one look finds it.

    :ivar former: the newest promotion before it of another version that isn't quarantined: after
        a rollback the one before it is just what was bad.
    :ivar events: how far it has come: event → detail.
    """

    declaration: Declaration
    workspace: Workspace
    part: Part
    as_of: datetime | None
    live: PromotionRow
    former: PromotionRow | None
    events: Events

    def report(self, outcome: BakeOutcome, reason: str, **rest: Any) -> BakeReport:
        """What this look says of the version; ``rest`` as in `BakeReport`."""
        known = {
            "model": self.declaration.name,
            "part": self.part,
            "as_of": self.as_of,
            "version": self.live.version,
            "position": self.live.position,
            "former": self.former.version if self.former else None,
            "over": outcome != "baking",
        }
        return BakeReport(**{**known, **rest, "outcome": outcome, "reason": reason})

    def holdout(self) -> Holdout | None:
        """What the version showed when it was promoted; None where nobody kept it."""
        if not self.live.origin:
            return None
        origin = Origin.model_validate(self.live.origin)
        return Holdout.load(self.declaration, self.workspace.store, origin)


def begin(
    declaration: Declaration, workspace: Workspace, part: Part, as_of: datetime | None
) -> Bake | BakeReport:
    """The live promotion; or what is to be said where there is nothing to look at any more."""
    with workspace.ledger.read() as session:
        live = records.champion(session, declaration.name)
        if live is None:
            return BakeReport(
                model=declaration.name,
                part=part,
                outcome="nothing",
                reason="no version is live",
                as_of=as_of,
                over=True,
            )
        events = records.events_of(session, live.id)
        former = _former(session, live)
    bake = Bake(declaration, workspace, part, as_of, live, former, events)
    if not {DISPROVED, VERIFIED, GOOD[part]} & set(events):
        return bake
    return record(bake, bake.report("baking", "looked at before"), None)


def _former(session: Session, live: PromotionRow) -> PromotionRow | None:
    """What the live version is compared with; None where nothing is left that is fit for it."""
    unfit = {live.version, *records.quarantined(session, live.model)}
    row = records.former(session, live)
    while row is not None and row.version in unfit:  # positions fall, so it ends
        row = records.former(session, row)
    return row


def record(
    bake: Bake, report: BakeReport, event: str | None, note: Mapping[str, Any] | None = None
) -> BakeReport:
    """Write down what a look found, and what follows from it.

    :param report: what the look says by itself.
    :param event: what it found; None when nothing is new.
    :param note: what later looks need.
    :returns: what is to be said, also in view of what another look has found since.
    """
    with bake.workspace.ledger.write() as session:
        records.lock(session, bake.declaration.name)
        newest = records.champion(session, bake.declaration.name)
        if newest is None or newest.id != bake.live.id:
            other = newest.version if newest else "none"
            return bake.report("nothing", f"the live version is {other} by now")
        events = records.events_of(session, newest.id)
        found = {"part": bake.part, "reason": report.reason}
        if event is not None and event not in events and not {DISPROVED, VERIFIED} & set(events):
            detail = {**found, **(note or {}), "report": report.to_dict()}
            records.add_event(session, newest, event, detail)
            events = {**events, event: detail}
        if _both(bake.declaration, events):
            records.add_event(session, newest, VERIFIED, found)
            events = {**events, VERIFIED: found}
        stuck = DISPROVED in events and not _way_back(session, bake)
    if stuck and event != DISPROVED and not _same_look(bake, events[DISPROVED]):
        return _stuck(bake, events[DISPROVED])
    return _outcome(bake, events, report, event)


def _way_back(session: Session, bake: Bake) -> bool:
    """Whether a machine may go back to another version."""
    found = records.last_verified(session, bake.live.model, besides=[bake.live.version])
    return found is not None


def _same_look(bake: Bake, bad: Mapping[str, Any]) -> bool:
    """Whether this look is the one that disproved the version, tried again."""
    if "report" not in bad:
        return False
    return BakeReport.model_validate(bad["report"]).as_of == bake.as_of


def _stuck(bake: Bake, bad: Mapping[str, Any]) -> BakeReport:
    """A disproved version that stays live: asking for a rollback again would only fail again."""
    model, version = bake.declaration.name, bake.live.version
    return bake.report(
        "nothing",
        f"version {version} was disproved by {bad.get('part')} and is still live: "
        f"{bad.get('reason')}. No other version is verified, so no machine goes back to one: a "
        f"person must name one with --version, or in the form of {model}.rollback",
    )


def _both(declaration: Declaration, events: Events) -> bool:
    """Whether a version is to be verified now."""
    watched = not declaration.serving.replicas or GOOD["requests"] in events
    return watched and GOOD["labels"] in events and not {DISPROVED, VERIFIED} & set(events)


def _outcome(bake: Bake, events: Events, report: BakeReport, event: str | None) -> BakeReport:
    """What is to be said of the version, all events considered."""
    if (bad := events.get(DISPROVED)) is not None:
        if bad.get("part") == bake.part and "report" in bad:
            return BakeReport.model_validate(bad["report"])
        return bake.report("roll_back", f"disproved by {bad.get('part')}: {bad.get('reason')}")
    good = events.get(GOOD[bake.part])
    if good is not None:
        return _well(bake, events, BakeReport.model_validate(good["report"]), event)
    if VERIFIED in events:
        return bake.report("nothing", f"version {bake.live.version} is verified")
    return report


def _well(bake: Bake, events: Events, own: BakeReport, event: str | None) -> BakeReport:
    """What is to be said of a version that is well by this part."""
    other = next(part for part in GOOD if part != bake.part)
    rest = "it is verified" if VERIFIED in events else f"{other} decide next"
    told = f"by {bake.part} it is well; {rest}"
    if event != GOOD[bake.part] and not _repeats(bake, own, events):
        return bake.report("nothing", f"version {bake.live.version}: {told}")
    outcome = "verified" if VERIFIED in events else "baking"
    said = {"outcome": outcome, "over": True, "reason": f"{own.reason}; {told}"}
    return own.model_copy(update=said)


def _repeats(bake: Bake, own: BakeReport, events: Events) -> bool:
    """Whether this look is the one that found the version well, tried again; or has to say that
    what was waited for isn't waited for any more."""
    if VERIFIED in events and VERIFIED not in bake.events:
        return True
    return bake.as_of is not None and own.as_of == bake.as_of
