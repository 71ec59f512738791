"""Categories as they were learned, how far a window's are from them, and distances of shares.

A profile knows the most frequent values by name and counts the others together. Values are known
by name: 1, 1.0 and True are one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from evergreen.declaration.watching import P_VALUES
from evergreen.lifecycle.fitted import plain_name

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]

KEPT = 10_000
"""Categories that a profile knows by name; the rarer ones are counted together."""
_OTHERS = "\0others"


@dataclass(frozen=True)
class Categories:
    """A window's categories: value → rows."""

    counts: Mapping[str, int]
    missing: int

    @classmethod
    def of(cls, column: pd.Series) -> Categories:
        """Count a column's values by name; 1, 1.0 and True are one."""
        counts: dict[str, int] = {}
        for value, rows in column.value_counts().items():
            if rows:
                name = _name(value)
                counts[name] = counts.get(name, 0) + int(rows)
        return cls(counts, int(column.isna().sum()))


@dataclass(frozen=True)
class CategoryProfile:
    """The learned categories of a column.

    :ivar counts: rows of each of the most frequent values.
    :ivar rest: rows of all the ``rest_values`` other values.
    """

    kind: ClassVar[Literal["category"]] = "category"
    counts: Mapping[str, int]
    rest: int
    rest_values: int
    missing: int

    @classmethod
    def of(cls, column: pd.Series, kept: int = KEPT) -> CategoryProfile:
        """Profile a column by its ``kept`` most frequent values."""
        now = Categories.of(column)
        ordered = sorted(now.counts.items(), key=lambda item: (-item[1], item[0]))
        rare = ordered[kept:]
        rest = sum(rows for _, rows in rare)
        return cls(dict(sorted(ordered[:kept])), rest, len(rare), now.missing)

    @property
    def count(self) -> int:
        """Rows with a value."""
        return sum(self.counts.values()) + self.rest

    def _counted(self, now: Categories) -> tuple[Array, Array]:
        """Rows of both sides by value; what wasn't kept by name stands together."""
        import numpy as np

        found: Mapping[str, int] = now.counts
        if self.rest:
            found = {key: rows for key, rows in now.counts.items() if key in self.counts}
            found[_OTHERS] = sum(now.counts.values()) - sum(found.values())
        learned = {**self.counts, **({_OTHERS: self.rest} if self.rest else {})}
        keys = sorted(learned.keys() | found.keys())
        learned_rows, found_rows = ([side.get(key, 0) for key in keys] for side in (learned, found))
        return np.array(learned_rows, "float64"), np.array(found_rows, "float64")

    def unlearned(self, now: Categories) -> tuple[float, tuple[str, ...]]:
        """The share of all the window's rows in categories never learned, and some of those.

        Where not all could be kept by name, a name among the rest can't be told from a new one:
        then it is what unknown names have more than the rest's share.
        """
        strange = {key: rows for key, rows in now.counts.items() if key not in self.counts}
        rows = sum(now.counts.values()) + now.missing
        if not strange:
            return 0.0, ()
        share = sum(strange.values()) / rows
        if self.rest:
            return max(0.0, share - self.rest / (self.count + self.missing)), ()
        ordered = sorted(strange, key=lambda key: (-strange[key], key))
        return share, tuple(ordered[:3])

    def jensenshannon(self, now: Categories) -> float:
        """The Jensen-Shannon distance, natural logarithm."""
        learned, found = self._counted(now)
        return jensenshannon(learned / learned.sum(), found / found.sum())

    def psi(self, now: Categories) -> float:
        """The population stability index; see `psi` for values that one side doesn't have."""
        learned, found = self._counted(now)
        return psi(learned / learned.sum(), found / found.sum())

    def chisquare(self, now: Categories) -> float:
        """The p-value of Pearson's chi-square test that the window's rows fall as the learned
        ones did. With a value never learned it is 0, with one value only 1."""
        from scipy import stats

        learned, found = self._counted(now)
        if not learned.all():
            return 0.0
        if len(learned) == 1:
            return 1.0
        expected = learned * (found.sum() / learned.sum())
        statistic = ((found - expected) ** 2 / expected).sum()
        return float(stats.chi2.sf(statistic, len(learned) - 1))

    def distance(self, method: str, now: Categories) -> float:
        """The distance, or p-value, by a method of `CategoryMethod`."""
        if not self.count or not now.counts:
            return 1.0 if method in P_VALUES else 0.0
        methods: dict[str, Callable[[Categories], float]] = {
            "jensenshannon": self.jensenshannon,
            "psi": self.psi,
            "chisquare": self.chisquare,
        }
        return methods[method](now)


def jensenshannon(learned: Array, found: Array) -> float:
    """The square root of the mean of both Kullback-Leibler divergences to the mean distribution
    (J. Lin 1991), natural logarithm: 0 for equal ones, sqrt(ln 2) for disjoint ones."""
    import numpy as np
    from scipy.special import rel_entr

    mean = (learned + found) / 2
    divergence = (rel_entr(learned, mean).sum() + rel_entr(found, mean).sum()) / 2
    return float(np.sqrt(max(divergence, 0.0)))


def psi(learned: Array, found: Array) -> float:
    """The population stability index, sum of ``(p - q) ln(p / q)``.

    An empty bin counts as Evidently has it: as 0.0001, or as a millionth of that side's smallest
    share when that is no larger.
    """
    import numpy as np

    p, q = _filled(learned), _filled(found)
    return float(((p - q) * np.log(p / q)).sum())


def _filled(shares: Array) -> Array:
    import numpy as np

    smallest = shares[shares > 0].min()
    return np.where(shares > 0, shares, smallest / 10**6 if smallest <= 0.0001 else 0.0001)


def _name(value: Any) -> str:
    return plain_name(int(value) if isinstance(value, bool) else value)
