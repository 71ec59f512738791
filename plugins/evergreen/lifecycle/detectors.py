"""River's detectors of a change in a stream, each seen from where it detects and kept as numbers.

DDM (J. Gama et al. 2004) sees rises only and is therefore given a twin. What a detector knows is
its numbers: with them put back, a new one of the same river goes on as if nothing had been between.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

_BLOCKS = 64
_BLOCK = 8


class _TwoSidedDdm:
    """DDM, and, from a rise on, its twin on right answers, which sees the fall.

    The authors' 30 rows before it begins and 3 deviations take a run of luck for the best error
    rate there was and then detect the return to normal: once in some 20,000 stationary rows, and
    in 3,500 where errors are rare. These values do so once in 35,000 to 600,000.
    """

    def __init__(self) -> None:
        self.rise: Any = self._new()
        self.fall: Any = None
        self.drift_detected = False

    def _new(self) -> Any:
        from river.drift.binary import DDM

        return DDM(warm_start=300, drift_threshold=3.5)

    def update(self, wrong: float) -> None:
        if self.fall is not None:
            self.fall.update(not wrong)
            if self.fall.drift_detected:
                self.rise, self.fall, self.drift_detected = self._new(), None, True
                return
        self.rise.update(bool(wrong))
        self.drift_detected = self.rise.drift_detected
        if self.drift_detected:
            self.fall = self._new()


def _detector(name: str, deviation: float) -> Any:
    """A new detector, for values of this standard deviation.

    Page-Hinkley tolerates a shift of a tenth of it and detects when shifts beyond that add up to
    fifty: half a deviation more error takes some 125 rows, a stationary stream some 300,000 to
    cross that by chance. Nothing is forgotten (``alpha``): river's default lets the sum of what
    was tolerated fade, and then chance is enough.
    """
    from river.drift import ADWIN, PageHinkley

    if name == "adwin":
        return ADWIN()
    if name == "page_hinkley":
        return PageHinkley(delta=0.1 * deviation, threshold=50.0 * deviation, alpha=1.0)
    return _TwoSidedDdm()


@dataclass
class Watcher:
    """A detector, and the sums of values since it last detected, to say what changed.

    :ivar deviation: the standard deviation of values where nothing changes, and ``typical`` their
        mean there.
    :ivar size: values a block; ``blocks`` are their sums, so many that two halves can be told.
    :ivar rows: values of the block that isn't full yet; ``total`` is their sum.
    """

    name: str
    deviation: float
    typical: float
    detector: Any = None
    size: int = _BLOCK
    blocks: list[float] = field(default_factory=list)
    rows: int = 0
    total: float = 0.0

    def __post_init__(self) -> None:
        self.detector = _detector(self.name, self.deviation)

    def follow(self, values: Sequence[float]) -> Iterator[tuple[int, float, float]]:
        """See values; where a change is detected: its place, and the means before and after."""
        for place, value in enumerate(values):
            self.detector.update(value)
            self.rows += 1
            self.total += value
            if self.rows == self.size:
                self._close()
            if self.detector.drift_detected:
                before, after = self._halves()
                yield place, before, after
                self.size, self.blocks, self.rows, self.total = _BLOCK, [], 0, 0.0
                self._begin_again(after)

    def _begin_again(self, mean: float) -> None:
        """Page-Hinkley's yardstick grows with the error, as deviations of errors do: else the
        noise of a worse stretch would look like one change after the other."""
        if self.name == "page_hinkley":
            times = max(mean / self.typical, 1.0)
            self.detector = _detector(self.name, self.deviation * times)

    def _close(self) -> None:
        self.blocks.append(self.total)
        self.rows, self.total = 0, 0.0
        if len(self.blocks) == _BLOCKS:
            self.blocks = [a + b for a, b in zip(self.blocks[::2], self.blocks[1::2], strict=True)]
            self.size *= 2

    def _halves(self) -> tuple[float, float]:
        """The means before and after the likeliest change: where the sum of deviations from the
        mean is furthest from 0 (D. V. Hinkley 1970)."""
        import numpy as np

        rows = np.cumsum([self.size] * len(self.blocks) + [self.rows])
        sums = np.cumsum([*self.blocks, self.total])
        inner = rows[:-1] < rows[-1]
        away = np.abs(sums - rows * sums[-1] / rows[-1])[:-1] * inner
        if not inner.any():
            return float(sums[-1] / rows[-1]), float(sums[-1] / rows[-1])
        at = int(away.argmax())
        return float(sums[at] / rows[at]), float((sums[-1] - sums[at]) / (rows[-1] - rows[at]))

    def state(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "detector": _numbers(self.detector),
            "size": self.size,
            "blocks": self.blocks,
            "rows": self.rows,
            "total": self.total,
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from a state."""
        _put_back(self.detector, kept["detector"])
        self.size, self.blocks = kept["size"], list(kept["blocks"])
        self.rows, self.total = kept["rows"], kept["total"]


def _numbers(thing: Any) -> dict[str, Any]:
    """An object's numbers, and those of the objects it holds; ADWIN's compiled part is bytes."""
    found: dict[str, Any] = {}
    for name, value in vars(thing).items():
        if value is None or isinstance(value, (bool, int, float, str)):
            found[name] = value
        elif hasattr(value, "__dict__") and not callable(value):
            found[name] = {"numbers": _numbers(value)}
        elif not callable(value):
            found[name] = {"bytes": base64.b64encode(value.__getstate__()).decode()}
    return found


def _put_back(thing: Any, numbers: dict[str, Any]) -> None:
    for name, value in numbers.items():
        if not isinstance(value, dict):
            setattr(thing, name, value)
            continue
        if getattr(thing, name) is None:
            setattr(thing, name, thing._new())
        if "bytes" in value:
            getattr(thing, name).__setstate__(base64.b64decode(value["bytes"]))
        else:
            _put_back(getattr(thing, name), value["numbers"])
