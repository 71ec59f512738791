"""Numbers as they were learned, and how far a window's are from them.

A profile is a grid of up to `GRID` of the learned values with how many rows lie at and between
them, and their sum: their distribution function, exact at the grid. A window's numbers are sorted
(with SIMD cheaper than to place each row in the grid) and everything else is read off at the
grid. Where the learned values fit the grid every distance is exact; elsewhere what is unknown is
how the rows of an interval, about one in 3,000, lie in it.

Infinite numbers count as missing, as in Evidently; those beyond ±1e140 as that, so that squares
and sums stay finite. A side without any value is at distance 0 (p-value 1): what is to be said of
it is said by the share of missing rows.

Longer than most: four distances read off one profile.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from evergreen.declaration.watching import P_VALUES
from evergreen.lifecycle.categoryprofiles import jensenshannon, psi
from evergreen.lifecycle.columns import typed

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]

GRID = 4_096
LARGEST = 1e140
FEW = 20
"""Numbers with so few distinct values are compared as categories, as in Evidently."""
EXACT_ROWS = 10_000
"""Up to so many rows on both sides SciPy's Kolmogorov-Smirnov test is exact."""


@dataclass(frozen=True)
class Numbers:
    """A window's numbers.

    :ivar values: finite, ascending.
    :ivar missing: rows without a finite number.
    """

    values: Array
    missing: int

    @classmethod
    def of(cls, column: pd.Series) -> Numbers:
        """Sort a column; what isn't a finite number is missing.

        :raises TypeError: for text.
        """
        import numpy as np
        from pandas.api.types import is_float_dtype

        numbers = column if is_float_dtype(column) else typed(column, "number")
        every = numbers.to_numpy("float64", na_value=np.nan)
        finite = np.sort(every[np.isfinite(every)])
        if len(finite) and max(-finite[0], finite[-1]) > LARGEST:
            finite = np.clip(finite, -LARGEST, LARGEST)
        return cls(finite, len(every) - len(finite))

    @cached_property
    def sums(self) -> Array:
        """Sums of the first 0, 1, … values, each less the middle one, so that few bits are lost."""
        import numpy as np

        middle = self.values[len(self.values) // 2]
        return np.concatenate(([0.0], np.cumsum(self.values - middle)))

    def sum(self, first: Array, last: Array, less: Array) -> Array:
        """The sums of ``value - less`` over the values from ``first`` to before ``last``."""
        middle = self.values[len(self.values) // 2]
        result: Array = self.sums[last] - self.sums[first] - (last - first) * (less - middle)
        return result


@dataclass(frozen=True)
class NumberProfile:
    """The learned numbers of a column.

    :ivar grid: ascending learned values, shape (k,); the first and last bound them all.
    :ivar at: rows at each grid value, shape (k,).
    :ivar between: rows strictly between a grid value and the next, shape (k,); the last is 0.
    :ivar total: of those rows the sum of what each lies above that grid value, shape (k,).
    :ivar low, high: the least and the greatest value (of a partition's profile, whose grid is
        the whole column's, they are its own).
    """

    kind: ClassVar[Literal["number"]] = "number"
    grid: Array
    at: Array
    between: Array
    total: Array
    missing: int
    mean: float
    std: float
    low: float
    high: float

    @classmethod
    def of(cls, column: pd.Series, grid: Array | int = GRID) -> NumberProfile:
        """Profile a column on a grid, or on at most so many of its own values."""
        import numpy as np

        now = Numbers.of(column)
        x = now.values
        if isinstance(grid, int):
            grid = grid_of(x, grid)
        if not len(x):
            none = np.zeros(len(grid))
            counts = none.astype("int64")
            return cls(grid, counts, counts, none, now.missing, 0.0, 0.0, 0.0, 0.0)
        below, through = np.searchsorted(x, grid, "left"), np.searchsorted(x, grid, "right")
        after = np.append(below[1:], through[-1])
        return cls(
            grid=grid,
            at=through - below,
            between=after - through,
            total=now.sum(through, after, grid),
            missing=now.missing,
            mean=float(np.mean(x)),
            std=float(np.std(x)),
            low=float(x[0]),
            high=float(x[-1]),
        )

    @property
    def count(self) -> int:
        """Rows with a number."""
        return int(self.at.sum() + self.between.sum())

    @property
    def exact(self) -> bool:
        """Whether every learned value is on the grid."""
        return not self.between.any()

    @cached_property
    def through(self) -> Array:
        """The share of rows at or below each grid value."""
        result: Array = (self.at + self.between).cumsum() - self.between
        return result / self.count

    @cached_property
    def before(self) -> Array:
        """The share of rows below each grid value."""
        return self.through - self.at / self.count

    def below(self, edges: Array) -> Array:
        """The share of rows below each edge; inside an interval as if spread evenly."""
        import numpy as np

        place = np.searchsorted(self.grid, edges, "left")
        last = np.clip(place - 1, 0, None)
        following = np.clip(place, None, len(self.grid) - 1)
        width = self.grid[following] - self.grid[last]
        part = (edges - self.grid[last]) / np.where(width > 0, width, 1.0)
        inside = self.through[last] + part * (self.before[following] - self.through[last])
        return np.where(place == 0, 0.0, np.where(place == len(self.grid), 1.0, inside))

    def outside(self, now: Numbers) -> float:
        """The share of all the window's rows that lie beyond what was learned."""
        import numpy as np

        rows = len(now.values) + now.missing
        if not self.count:
            return len(now.values) / rows if rows else 0.0
        above = len(now.values) - np.searchsorted(now.values, self.high, "right")
        return float(np.searchsorted(now.values, self.low, "left") + above) / rows if rows else 0.0

    def wasserstein(self, now: Numbers) -> float:
        """The 1-Wasserstein distance, the area between both distribution functions F and G, over
        the standard deviation of the learned values or 0.001 (Evidently's normalisation).

        In an interval of the grid in which F - G keeps its sign the area is the difference of
        both integrals, which is exact.
        """
        import numpy as np

        x, grid, n = now.values, self.grid, len(now.values)
        first, last = np.searchsorted(x, grid, "left"), np.searchsorted(x, grid, "right")
        start, end, width = last[:-1], first[1:], np.diff(grid)
        learned = self.through[:-1] * width
        learned += (self.between[:-1] * width - self.total[:-1]) / self.count
        found = (start * width - now.sum(start, end, grid[1:])) / n
        ahead, behind = self.through[:-1] - start / n, self.before[1:] - end / n
        area = np.abs(learned - found)
        crossing = np.flatnonzero(ahead * behind < 0)
        if len(crossing):
            area[crossing] = np.maximum(
                area[crossing], self._crossed(now, crossing, start, end, ahead, behind)
            )
        beyond = now.sum(last[-1:], np.array([n]), grid[-1:])[0]
        beyond -= now.sum(np.array([0]), first[:1], grid[:1])[0]
        return float(max(area.sum() + beyond / n, 0.0)) / max(self.std, 0.001)

    def _crossed(
        self, now: Numbers, which: Array, start: Array, end: Array, ahead: Array, behind: Array
    ) -> Array:
        """The area in intervals in which F - G changes its sign, from ``ahead`` to ``behind``.

        Where the window has most of the rows F counts as level and G's values are looked at;
        elsewhere both count as straight.
        """
        import numpy as np

        x, n, grid = now.values, len(now.values), self.grid
        begin, stop, d0, d1 = start[which], end[which], ahead[which], behind[which]
        a, b = grid[which], grid[which + 1]
        level = (self.through[which] + self.before[which + 1]) / 2
        # The value at which G reaches the level parts what lies below it from what lies above.
        turn = np.clip(np.ceil(level * n).astype("int64"), begin, stop)
        cut = np.clip(x[np.clip(turn - 1, 0, n - 1)], a, b)
        left = (level - begin / n) * (cut - a) + now.sum(begin, turn, cut) / n
        right = now.sum(turn, stop, b) / -n - (level - turn / n) * (b - cut)
        straight = (b - a) * (d0**2 + d1**2) / (2 * (np.abs(d0) + np.abs(d1)))
        rows = self.between[which] / self.count
        area: Array = np.where(4 * rows <= (stop - begin) / n, left + right, straight)
        return area

    def ks(self, now: Numbers) -> float:
        """The p-value of the two-sided two-sample Kolmogorov-Smirnov test, as SciPy's
        ``ks_2samp``: exact up to `EXACT_ROWS` rows if the profile is, else asymptotic."""
        import numpy as np
        from scipy import stats

        x, n, m = now.values, len(now.values), self.count
        if self.exact and max(n, m) <= EXACT_ROWS:
            with warnings.catch_warnings():
                # SciPy's, when the exact sum underflows and it takes the asymptotic one itself.
                warnings.simplefilter("ignore", RuntimeWarning)
                return float(stats.ks_2samp(np.repeat(self.grid, self.at), x).pvalue)
        through = np.searchsorted(x, self.grid, "right") / n
        before = np.searchsorted(x, self.grid, "left") / n
        apart = max(np.abs(self.through - through).max(), np.abs(self.before - before).max())
        return float(stats.kstwo.sf(apart, np.round(n * m / (n + m))))

    def jensenshannon(self, now: Numbers) -> float:
        """The Jensen-Shannon distance (natural logarithm) over Sturges' bins of both sides
        together, as Evidently's; over the values themselves when `FEW` were learned."""
        import numpy as np

        if self.exact and len(self.grid) <= FEW:
            return jensenshannon(*self._by_value(now))
        x = now.values
        first, last = min(x[0], self.grid[0]), max(x[-1], self.grid[-1])
        # As numpy.histogram_bin_edges of both, digit by digit.
        width = (last - first) / (np.log2(len(x) + self.count) + 1.0)
        edges = np.linspace(first, last, int(np.ceil((last - first) / width)) + 1)
        return jensenshannon(*self._binned(now, edges[1:-1]))

    def psi(self, now: Numbers) -> float:
        """The population stability index over the learned values' deciles, or over the values
        themselves when `FEW` were learned. (Evidently takes Sturges' bins, which leave most bins
        of a long tail empty.)"""
        import numpy as np

        if self.exact and len(self.grid) <= FEW:
            return psi(*self._by_value(now))
        tenths = np.arange(1, 10) / 10
        deciles = self.grid[np.clip(np.searchsorted(self.through, tenths), 0, len(self.grid) - 1)]
        return psi(*self._binned(now, np.unique(deciles)))

    def _binned(self, now: Numbers, inner: Array) -> tuple[Array, Array]:
        """The shares of both sides between inner edges, which belong to the bin above."""
        import numpy as np

        found = np.searchsorted(now.values, inner, "left") / len(now.values)
        sides = (np.concatenate(([0.0], side, [1.0])) for side in (self.below(inner), found))
        learned, current = (np.clip(np.diff(side), 0.0, None) for side in sides)
        return learned, current

    def _by_value(self, now: Numbers) -> tuple[Array, Array]:
        """The shares of both sides at each learned value, and at all others together."""
        import numpy as np

        x = now.values
        found = np.searchsorted(x, self.grid, "right") - np.searchsorted(x, self.grid, "left")
        learned = np.append(self.at, 0) / self.count
        return learned, np.append(found, len(x) - found.sum()) / len(x)

    def distance(self, method: str, now: Numbers) -> float:
        """The distance, or p-value, by a method of `NumberMethod`."""
        if not self.count or not len(now.values):
            return 1.0 if method in P_VALUES else 0.0
        methods: dict[str, Callable[[Numbers], float]] = {
            "wasserstein": self.wasserstein,
            "jensenshannon": self.jensenshannon,
            "ks": self.ks,
            "psi": self.psi,
        }
        return methods[method](now)


def grid_of(values: Array, points: int) -> Array:
    """At most ``points`` of ascending values: all distinct ones, or quantiles of them.

    Three quarters are evenly spaced, an eighth goes to either tail in steps that shrink towards
    the end: the few rows of a long tail lie far apart, and count for much.
    """
    import numpy as np

    distinct = np.unique(values)
    if len(distinct) <= points:
        return distinct
    last, eighth = len(values) - 1, points // 8
    tail = np.geomspace(1, last / 2, eighth) - 1
    ranks = np.concatenate((tail, np.linspace(0, last, points - 2 * eighth), last - tail))
    return np.unique(values[np.round(ranks).astype("int64")])
