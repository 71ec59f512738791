"""What the ledger says about a model, as plain values: for the command line and the UI."""

from __future__ import annotations

from typing import Any

from evergreen.declaration import Declaration
from evergreen.ledger import records
from evergreen.ledger.tables import Table
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
    last = decisions[-1]["decision"] if decisions else None
    return {
        "model": name,
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
        "open_signals": sorted({signal.cause for signal in signals}),
        "in_flight": flights,
        "last_scored": scored[-1].partition if scored else None,
        "last_metrics": scored[-1].metrics if scored else {},
    }


def history_of(model: str, workspace: Workspace) -> list[dict[str, Any]]:
    """Every decision with its outcome, verdict and promotion, oldest first."""
    with workspace.ledger.read() as session:
        entries = records.history(session, model)
    return [{name: _plain(row) for name, row in entry.items()} for entry in entries]


def _plain(row: Table | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}
