"""What is known of a model for its ML Test Score, and what one test is judged to be.

"Lately" is by the data's time, so that a replay scores as the past did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from evergreen.declaration import Declaration
from evergreen.ledger.tables import DrillRow, PromotionRow, VerdictRow

LATELY = timedelta(days=90)  # of the data's time: what is older doesn't count as regular

Rules = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Judged:
    """What is known of one test.

    :ivar points: 0, 0.5 or 1.
    :ivar todo: what to do next; None only for a whole point.
    :ivar failing: Evergreen measures it by itself and found it failing: no declaration counts.
    """

    points: float
    evidence: str
    todo: str | None = None
    failing: bool = False


@dataclass(frozen=True)
class Measured:
    """The newest measurement of a window. Metric → value in ``realised`` and ``estimated``;
    ``basis`` says on which of the two a judgement of performance rests."""

    window: str
    version: str
    as_of: datetime
    judged: bool
    violates: Sequence[str]
    realised: Mapping[str, float] = field(default_factory=dict)
    estimated: Mapping[str, float] = field(default_factory=dict)
    slices: Mapping[str, Any] = field(default_factory=dict)
    columns: Sequence[Mapping[str, Any]] = ()
    basis: str = "nothing"


@dataclass(frozen=True)
class Compared:
    """A partition's features as served beside the offline join; ``violates`` names features."""

    partition: str
    as_of: datetime
    violates: Sequence[str]
    rows: int


@dataclass(frozen=True)
class Known:
    """A declaration and the newest of a ledger.

    :ivar suite: how many expectations the declared suite holds; a text says why it can't be read.
    :ivar promotions: the newest first; the first is live.
    :ivar verdict: the one that let the live version in, also where a rollback brought it back.
    :ivar compared: how many of the newest verdicts held a candidate against the champion.
    :ivar probed: how many of them measured latency and memory.
    :ivar alike: what the newest verdict that looked said of logged answers against anew.
    :ivar looks: what bakes found: promotion id → events.
    :ivar skew: the newest judged comparison of features as served.
    :ivar drift: the newest judged window, of the live version where it has one.
    :ivar performance: newest windows, the newest first.
    :ivar searched: whether one of the newest decisions searched parameters anew.
    :ivar decided: as of when the arbiter decided last.
    :ivar stopped: why automatic retraining has stopped, and nobody has acknowledged it.
    :ivar paused: by whom automatic retraining is paused, and why.
    :ivar now: the end of the newest data, or the live promotion's moment where that is later.
    """

    declaration: Declaration
    suite: int | str
    promotions: Sequence[PromotionRow] = ()
    verdict: VerdictRow | None = None
    rules: Rules = ()
    compared: int = 0
    probed: int = 0
    alike: str | None = None
    looks: Mapping[int, frozenset[str]] = field(default_factory=dict)
    drill: DrillRow | None = None
    skew: Compared | None = None
    drift: Measured | None = None
    performance: Sequence[Measured] = ()
    searched: bool = False
    decided: datetime | None = None
    stopped: str | None = None
    paused: str | None = None
    now: datetime | None = None

    @property
    def live(self) -> PromotionRow | None:
        """The promotion whose version is live."""
        return self.promotions[0] if self.promotions else None

    def passed(self, *names: str) -> bool:
        """Whether the live version's verdict has lines whose names begin so, and all passed."""
        found = [[rule for rule in self.rules if rule["name"].startswith(n)] for n in names]
        return all(lines and all(rule["passed"] for rule in lines) for lines in found)

    def lately(self, moment: datetime | None) -> bool:
        """Whether a moment is at most `LATELY` before the newest data."""
        return moment is not None and self.now is not None and self.now - moment <= LATELY

    @property
    def quality(self) -> Measured | None:
        """The newest judged performance: the live version's where there is one."""
        judged = [each for each in self.performance if each.judged]
        own = [each for each in judged if self.live and each.version == self.live.version]
        return next(iter((*own, *judged)), None)
