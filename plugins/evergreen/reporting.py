"""What the ledger says about a model, as plain values: for the command line and the UI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from evergreen.declaration import Declaration
from evergreen.ledger import acts, records
from evergreen.ledger.tables import ActRow, MeasurementRow, Table
from evergreen.lifecycle import escalation
from evergreen.lifecycle.windows import WATCHED, judged_for, windows_of
from evergreen.workspace import Workspace


def status_of(declaration: Declaration, workspace: Workspace) -> dict[str, Any]:
    """What is live, since when and why; the last decision; what is open."""
    name = declaration.name
    with workspace.ledger.read() as session:
        live = records.champion(session, name)
        decisions = records.history(session, name)
        signals = records.open_signals(session, name)
        mark = records.watermark(session, name)
        scored = records.scores(session, name)
        events = records.events_of(session, live.id) if live else {}
        flights = [row.run_id for row in records.in_flight(session, name)]
        standing = escalation.standing(session, declaration)
        windows = windows_of(session, live) if live else []
        measured = {
            kind: _newest(records.measurements(session, name, kind, live.version if live else None))
            for kind in WATCHED
        }
        answers = records.answers_to(session, standing.stopped.id) if standing.stopped else []
        restores = records.last_verified(session, name, besides=[live.version]) if live else None
        held = records.quarantined(session, name)
        drilled = records.drills(session, name)[:1]
        held_back = acts.pause_of(session, name)
    last = decisions[-1]["decision"] if decisions else None
    judged = [window for window in windows if window.judged]
    newest = {cause: found[-1] for cause in WATCHED if (found := judged_for(windows, cause))}
    violates = {
        cause: window.violates[cause]
        for cause, window in newest.items()
        if cause in window.violates
    }
    drift, performance = measured["drift"], measured["performance"]
    return {
        "model": name,
        "health": health_of(
            live=live is not None,
            stopped=standing.stopped is not None,
            paused=held_back is not None,
            violates=violates if judged else None,
        ),
        "priority": standing.priority,
        "futile_retrains": standing.futile,
        "stopped": standing.stopped and standing.stopped.reason,
        "paused": held_back and _pause(held_back),
        "answers": [
            {"answer": a.answer, "person": a.person, "comment": a.comment} for a in answers
        ],
        "window": judged[-1].key if judged else None,
        "violates": violates,
        "judged_in": {cause: window.key for cause, window in newest.items()},
        "drift_share": drift and drift.evidence.get("share"),
        "drift_report": drift and drift.evidence.get("report"),
        "measured_in": performance and performance.window,
        "realised": performance and performance.evidence["realised"],
        "estimated": performance and performance.evidence["estimated"],
        "matured": performance and performance.evidence["matured"],
        "watermark": mark and mark.isoformat(),
        "version": live and live.version,
        "live_since": live and live.as_of.isoformat(),
        "why": live and live.reason,
        "promotion": promotion_state(events) if live else None,
        "proof": _proof(events),
        "rolls_back_to": restores and restores.version,
        "quarantined": {version: row.reason for version, row in held.items()},
        "last_drill": drilled[0].evidence if drilled else None,
        "last_decision": last and last.action,
        "last_reasons": last and last.reasons,
        "suppressed_until": last and last.until and last.until.isoformat(),
        "open_signals": dict(sorted(Counter(signal.cause for signal in signals).items())),
        "in_flight": flights,
        "last_scored": scored[-1].partition if scored else None,
        "last_metrics": scored[-1].metrics if scored else {},
    }


def promotion_state(events: Collection[str]) -> str:
    """How far a promotion has come, in a word."""
    for event in ("disproved", "verified"):
        if event in events:
            return event
    return "baking" if "completed" in events else "being carried out"


def _proof(events: dict[str, dict[str, Any]]) -> str | None:
    """Why a version is verified, or disproved."""
    for event in ("disproved", "proven", "verified", "watched"):
        if event in events:
            return events[event].get("reason")
    return None


def _pause(held: ActRow) -> dict[str, str]:
    """Who paused automatic retraining, why, and since when by the database's clock."""
    return {"person": held.person, "comment": held.comment, "since": held.recorded_at.isoformat()}


def health_of(*, live: bool, stopped: bool, paused: bool, violates: Collection[str] | None) -> str:
    """One word for how a model does; what needs a person goes before what a person did.

    :param violates: causes beyond their bounds, each in the newest window in which it is judged;
        None when no window is judged yet.
    """
    if stopped:
        return "stopped"
    if not live:
        return "no version"
    if violates:
        return "degraded" if "performance" in violates else "drifting"
    if paused:
        return "paused"
    return "not watched yet" if violates is None else "healthy"


def _newest(rows: Sequence[MeasurementRow]) -> MeasurementRow | None:
    """The newest judged one; of performance one by labels, if there is any, for they come late."""
    judged = [row for row in rows if row.judged]
    by_labels = [row for row in judged if row.evidence.get("basis") == "realised"]
    return next(reversed(by_labels or judged), None)


def history_of(model: str, workspace: Workspace) -> list[dict[str, Any]]:
    """Every decision with its outcome, verdict, promotion and that one's events; every rollback;
    and every act of a person's. Oldest first.

    An entry without ``decision`` is a rollback's ``promotion``, or else an ``act``.
    """
    with workspace.ledger.read() as session:
        entries = records.history(session, model)
        back = [{"decision": None, "promotion": row} for row in records.rollbacks(session, model)]
        asked = acts.acts_of(session, model, limit=None)
        for entry in (*entries, *back):
            made = entry["promotion"]
            entry["events"] = records.events_of(session, made.id) if made else {}
    people = [{"decision": None, "promotion": None, "act": row} for row in reversed(asked)]
    every = sorted((*entries, *back, *people), key=_recorded)
    return [{name: _plain(part) for name, part in entry.items()} for entry in every]


def _recorded(entry: dict[str, Any]) -> datetime:
    row = entry["decision"] or entry["promotion"] or entry["act"]
    recorded: datetime = row.recorded_at
    return recorded


def _plain(part: Table | dict[str, Any] | None) -> dict[str, Any] | None:
    if part is None or isinstance(part, dict):
        return part
    return {column.name: getattr(part, column.name) for column in part.__table__.columns}
