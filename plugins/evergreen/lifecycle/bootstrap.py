"""The paired bootstrap: how much better is the candidate, and how sure can we be?

Both models answered the same rows, so rows are resampled, never the two models' scores apart:
what is hard for both cancels out. The interval is the percentile interval (B. Efron and
R. J. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Metric, Task
from evergreen.lifecycle.metrics import measure, row_losses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

GROUPS = 20_000
_CELLS = 4_000_000


@dataclass(frozen=True)
class Difference:
    """The candidate's improvement over the other model: positive is better.

    :ivar estimate: on the rows as they are.
    :ivar low: lower end of the interval.
    :ivar high: upper end of the interval.
    """

    estimate: float
    low: float
    high: float


def paired_difference(
    metric: Metric, task: Task, labels: Array, candidate: Array, other: Array,
    *, resamples: int, confidence: float, seed: int,
) -> Difference:  # fmt: skip
    """Estimate the improvement in ``metric`` and its interval.

    :param labels: shape (n,); ``candidate`` and ``other`` as in `evergreen.lifecycle.metrics`.
    :param resamples: how many bootstrap resamples.
    :param confidence: the interval's two-sided coverage, like 0.95.
    :param seed: of the resampling; the same rows and seed give the same interval.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    estimate = metric.improvement(
        measure(metric.name, task, labels, other), measure(metric.name, task, labels, candidate)
    )
    mean = "mean_squared_error" if metric.name == "root_mean_squared_error" else metric.name
    ours, theirs = (row_losses(mean, task, labels, p) for p in (candidate, other))
    if ours is not None and theirs is not None:
        finish = np.sqrt if mean != metric.name else np.asarray
        sampled = _resampled_means(np.column_stack([theirs, ours]), resamples, rng)
        draws = finish(sampled[:, 1]) - finish(sampled[:, 0])
        draws = draws if metric.greater_is_better else -draws
    else:
        fast = _auc_of(labels, candidate, other) if (metric.name, task) == ("roc_auc", Task.BINARY) else None
        draws = _resampled(fast or _any_of(metric, task, labels, candidate, other), len(labels), resamples, rng)
        draws = draws[np.isfinite(draws)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail]) if len(draws) else (np.nan, np.nan)
    return Difference(float(estimate), float(low), float(high))


def _resampled_means(values: Array, resamples: int, rng: np.random.Generator) -> Array:
    """Means of ``values`` (n, 2) over resampled rows, shape (resamples, 2).

    Above `GROUPS` rows, rows are put into that many groups at random and groups are resampled:
    the mean's variance is the same in expectation, and the cost is bounded.
    """
    import numpy as np

    sizes = np.ones(len(values))
    if len(values) > GROUPS:
        group = rng.permutation(len(values)) % GROUPS
        sizes = np.bincount(group, minlength=GROUPS).astype(float)
        values = np.column_stack([np.bincount(group, weights=column) for column in values.T])
    parts = []
    for size in _chunks(resamples, len(values)):
        rows = rng.integers(0, len(values), size=(size, len(values)), dtype=np.int32)
        total = sizes[rows].sum(axis=1) if sizes.max() > 1 else np.full(size, float(len(values)))
        parts.append(np.column_stack([column[rows].sum(axis=1) / total for column in values.T]))
    return np.concatenate(parts)


def _resampled(
    improvement: Callable[[Array], Array], rows: int, resamples: int, rng: np.random.Generator
) -> Array:
    """``improvement`` of each resample, given as counts of shape (chunk, rows)."""
    import numpy as np

    share = np.full(rows, 1 / rows)
    return np.concatenate(
        [improvement(rng.multinomial(rows, share, size=size)) for size in _chunks(resamples, rows)]
    )


def _chunks(total: int, width: int) -> Iterator[int]:
    step = max(1, _CELLS // max(width, 1))
    yield from (min(step, total - done) for done in range(0, total, step))


def _any_of(
    metric: Metric, task: Task, labels: Array, candidate: Array, other: Array
) -> Callable[[Array], Array]:
    import numpy as np

    def improvement(counts: Array) -> Array:
        drawn = []
        for count in counts:
            kept = count > 0
            theirs, ours = (
                measure(metric.name, task, labels[kept], p[kept], count[kept])
                for p in (other, candidate)
            )
            drawn.append(metric.improvement(theirs, ours))
        return np.asarray(drawn)

    return improvement


def _auc_of(labels: Array, candidate: Array, other: Array) -> Callable[[Array], Array]:
    """ROC AUC's improvement over many resamples at once.

    AUC is the share of (positive, negative) pairs ranked right, ties counting half (Mann and
    Whitney 1947); with rows sorted by score it is a cumulative sum of the weights.
    """
    import numpy as np

    def prepared(scores: Array) -> tuple[Array, Array]:
        order = np.argsort(scores, kind="stable")
        ordered = scores[order]
        return order, np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])

    def auc(counts: Array, order: Array, starts: Array) -> Array:
        weights, positive = counts[:, order], labels[order] == 1
        above = np.add.reduceat(weights * positive, starts, axis=1)
        below = np.add.reduceat(weights * ~positive, starts, axis=1)
        lower = np.cumsum(below, axis=1) - below / 2
        pairs = above.sum(axis=1) * below.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((above * lower).sum(axis=1) / pairs)

    ours, theirs = prepared(candidate), prepared(other)
    return lambda counts: auc(counts, *ours) - auc(counts, *theirs)
