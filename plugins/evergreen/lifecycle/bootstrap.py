"""The paired bootstrap: how much better is the candidate, and how sure can we be?

Both models answered the same rows, so rows are resampled, never the two models' scores apart:
what is hard for both cancels out. Rows that go wrong together (all flights of a stormy day) are
resampled together, in clusters; taking them for independent would make the interval far too
narrow. The interval is the percentile interval (B. Efron and R. J. Tibshirani, "An Introduction
to the Bootstrap", 1993, chapter 13); resampling clusters: A. C. Davison and D. V. Hinkley,
"Bootstrap Methods and their Application", 1997, section 3.8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evergreen.declaration import METRICS, Metric, Task
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
    metric: Metric,
    task: Task,
    labels: Array,
    candidate: Array,
    other: Array,
    *,
    resamples: int,
    confidence: float,
    seed: int,
    clusters: Array | None = None,
) -> Difference:
    """Estimate the improvement in ``metric`` and its interval.

    :param labels: shape (n,); ``candidate`` and ``other`` as in `evergreen.lifecycle.metrics`.
    :param resamples: how many bootstrap resamples.
    :param confidence: the interval's two-sided coverage, like 0.95.
    :param clusters: each row's cluster, 0..c-1, shape (n,); every row is its own when None.
    :param seed: of the resampling; the same rows and seed give the same interval.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    estimate = metric.improvement(
        measure(metric, task, labels, other), measure(metric, task, labels, candidate)
    )
    rooted = metric.name == "root_mean_squared_error"
    mean = METRICS["mean_squared_error"] if rooted else metric
    ours, theirs = (row_losses(mean, task, labels, p) for p in (candidate, other))
    if ours is not None and theirs is not None:
        finish = np.sqrt if rooted else np.asarray
        sampled = _resampled_means(np.column_stack([theirs, ours]), clusters, resamples, rng)
        draws = finish(sampled[:, 1]) - finish(sampled[:, 0])
        draws = draws if metric.greater_is_better else -draws
    else:
        improvement = (
            _auc_of(labels, candidate, other)
            if (metric.name, task) == ("roc_auc", Task.BINARY)
            else _any_of(metric, task, labels, candidate, other)
        )
        draws = _resampled(improvement, len(labels), clusters, resamples, rng)
        draws = draws[np.isfinite(draws)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail]) if len(draws) else (np.nan, np.nan)
    return Difference(float(estimate), float(low), float(high))


def _resampled_means(
    values: Array, clusters: Array | None, resamples: int, rng: np.random.Generator
) -> Array:
    """Means of ``values`` (n, 2) over resampled rows or clusters, shape (resamples, 2).

    More than `GROUPS` independent rows are put into that many groups at random and groups are
    resampled: the mean's variance is the same in expectation, and the cost is bounded.
    """
    import numpy as np

    if clusters is None and len(values) > GROUPS:
        clusters = rng.permutation(len(values)) % GROUPS
    sizes = np.ones(len(values))
    if clusters is not None:
        sizes = np.bincount(clusters).astype(float)
        values = np.column_stack([np.bincount(clusters, weights=column) for column in values.T])
    parts = []
    for size in _chunks(resamples, len(values)):
        drawn = rng.integers(0, len(values), size=(size, len(values)), dtype=np.int32)
        total = sizes[drawn].sum(axis=1)
        parts.append(np.column_stack([column[drawn].sum(axis=1) / total for column in values.T]))
    return np.concatenate(parts)


def _resampled(
    improvement: Callable[[Array], Array],
    rows: int,
    clusters: Array | None,
    resamples: int,
    rng: np.random.Generator,
) -> Array:
    """``improvement`` of each resample, given as counts of shape (chunk, rows)."""
    import numpy as np

    codes = np.arange(rows) if clusters is None else clusters
    units = int(codes.max()) + 1
    share = np.full(units, 1 / units)
    return np.concatenate(
        [
            improvement(rng.multinomial(units, share, size=size)[:, codes])
            for size in _chunks(resamples, rows)
        ]
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
                measure(metric, task, labels[kept], p[kept], count[kept])
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
