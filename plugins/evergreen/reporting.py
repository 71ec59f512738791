"""What the ledger says about a model, as plain values: for the command line and the UI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from evergreen.declaration import Declaration
from evergreen.ledger import records
from evergreen.ledger.tables import MeasurementRow, Table
from evergreen.lifecycle import escalation
from evergreen.lifecycle.windows import Watched, windows_of
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
            for kind in ("drift", "performance")
        }
        answers = records.answers_to(session, standing.stopped.id) if standing.stopped else []
    last = decisions[-1]["decision"] if decisions else None
    judged = [window for window in windows if window.judged]
    drift, performance = measured["drift"], measured["performance"]
    return {
        "model": name,
        "health": _health(live is not None, standing, judged),
        "priority": standing.priority,
        "futile_retrains": standing.futile,
        "stopped": standing.stopped and standing.stopped.reason,
        "answers": [
            {"answer": a.answer, "person": a.person, "comment": a.comment} for a in answers
        ],
        "window": judged[-1].key if judged else None,
        "violates": judged[-1].violates if judged else {},
        "drift_share": drift and drift.evidence.get("share"),
        "drift_report": drift and drift.evidence.get("report"),
        "realised": performance and performance.evidence["realised"],
        "estimated": performance and performance.evidence["estimated"],
        "matured": performance and performance.evidence["matured"],
        "watermark": mark and mark.isoformat(),
        "version": live and live.version,
        "live_since": live and live.as_of.isoformat(),
        "why": live and live.reason,
        "promotion": ("complete" if "completed" in events else "being carried out")
        if live
        else None,
        "last_decision": last and last.action,
        "last_reasons": last and last.reasons,
        "suppressed_until": last and last.until and last.until.isoformat(),
        "open_signals": dict(sorted(Counter(signal.cause for signal in signals).items())),
        "in_flight": flights,
        "last_scored": scored[-1].partition if scored else None,
        "last_metrics": scored[-1].metrics if scored else {},
    }


def _health(live: bool, standing: escalation.Standing, judged: list[Watched]) -> str:
    """One word for how a model does."""
    if standing.stopped:
        return "stopped"
    if not live:
        return "no version"
    if not judged:
        return "not watched yet"
    if "performance" in judged[-1].violates:
        return "degraded"
    return "drifting" if judged[-1].violates else "healthy"


def _newest(rows: Sequence[MeasurementRow]) -> MeasurementRow | None:
    judged = [row for row in rows if row.judged]
    return judged[-1] if judged else None


def history_of(model: str, workspace: Workspace) -> list[dict[str, Any]]:
    """Every decision with its outcome, verdict and promotion, oldest first."""
    with workspace.ledger.read() as session:
        entries = records.history(session, model)
    return [{name: _plain(row) for name, row in entry.items()} for entry in entries]


def _plain(row: Table | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}
