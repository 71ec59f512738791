"""A live version's windows as the ledger knows them: which causes were judged, which violate.

What monitoring finds (``inputs``, ``target``, …) speaks for a cause of the arbiter. A window
belongs to the champion that answered it: after a promotion or a rollback counting starts anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy.orm import Session

from evergreen.ledger import records
from evergreen.ledger.tables import MeasurementRow, PromotionRow, SignalRow

CAUSE_OF = {
    "performance": "performance",
    "inputs": "drift",
    "prediction": "drift",
    "target": "drift",
    "concept": "drift",
}
WATCHED = ("performance", "drift")  # causes that monitoring raises


@dataclass
class Watched:
    """One window.

    :ivar judged: causes for which there was enough to judge by.
    :ivar violates: cause → what is beyond its bound.
    """

    key: str
    version: str
    start: datetime
    end: datetime
    judged: set[str] = field(default_factory=set)
    violates: dict[str, list[str]] = field(default_factory=dict)

    def add(self, row: MeasurementRow) -> None:
        """Take in what one measurement of the window found."""
        for found in row.violates:
            self.violates.setdefault(CAUSE_OF[found], []).append(found)
        self.judged |= {row.kind} if row.judged else set()
        self.judged |= set(self.violates)

    def signal_key(self) -> str:
        """The key of the signal that the window raises, one a cause."""
        return f"{self.key}/{self.version}"


def windows_of(session: Session, live: PromotionRow) -> list[Watched]:
    """The windows a promotion's version answered while it was live, by event time."""
    found: dict[str, Watched] = {}
    for row in records.measurements(session, live.model, version=live.version, bare=True):
        if row.start < live.as_of:
            continue
        window = found.setdefault(row.window, Watched(row.window, row.version, row.start, row.end))
        window.add(row)
    return sorted(found.values(), key=lambda window: window.end)


def judged_for(windows: Sequence[Watched], cause: str) -> list[Watched]:
    """Those in which a cause could be judged."""
    return [window for window in windows if cause in window.judged]


def obsolete(
    signal: SignalRow, live: PromotionRow | None, windows: Sequence[Watched]
) -> str | None:
    """Why a signal of monitoring means nothing any more; None when it does.

    Signals that others raised name no window and are never obsolete.
    """
    key, version = signal.evidence.get("window"), signal.evidence.get("version")
    if signal.cause not in WATCHED or key is None or live is None:
        return None
    if version != live.version:
        return f"{signal.cause} in {key} was version {version}'s; version {live.version} is live"
    if all(window.key != key for window in windows):
        return f"{signal.cause} in {key} was before version {version} came back"
    return None


def withdrawn(signal: SignalRow, windows: Sequence[Watched]) -> bool:
    """Whether more labels have shown that the window doesn't violate; more still may show that it
    does, so the signal stays."""
    window = next((w for w in windows if w.key == signal.evidence.get("window")), None)
    return window is not None and signal.cause in WATCHED and signal.cause not in window.violates
