"""How sure is a metric? The bootstrap interval of one model's metric, or of its improvement.

A resample is a count of how often each unit (a row, or a cluster of rows) was drawn, and every
metric here is a function of sums over units: means, the parts of a confusion matrix, or how many
rows of each class have a score in each of many bins. So a matrix of counts times a table of sums
gives the metric in all resamples at once, whatever the number of rows; and two models measured
by the same counts are compared in pairs, as in `evergreen.lifecycle.bootstrap`.

Intervals are percentile intervals (B. Efron and R. J. Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 13), moved to where the metric lies on the rows as they are; those of
`mean_interval` are normal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from evergreen.declaration import METRICS, Metric, Task
from evergreen.lifecycle.contracts import Interval
from evergreen.lifecycle.metrics import classes_of, measure, row_losses

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

#: More independent rows are put into so many groups at random and groups are resampled: the
#: variance is the same in expectation, known to 1.6 %, and the cost is bounded.
UNITS = 2_000
BINS = 500  # of scores, for metrics that rank: an error of the width, not of the value
_CELLS = 4_000_000


@dataclass(frozen=True)
class Resampling:
    """How an interval is made.

    :ivar resamples: how many bootstrap resamples.
    :ivar confidence: two-sided coverage, like 0.95.
    :ivar seed: the same rows and seed give the same interval.
    """

    resamples: int
    confidence: float
    seed: int


@dataclass(frozen=True)
class _Sums:
    """A metric as a function of sums over units.

    :ivar table: units and how many there are → sums, shape (units, m).
    :ivar finish: sums of each resample, shape (r, m) → the metric, shape (r,).
    """

    table: Callable[[Array, int], Array]
    finish: Callable[[Array], Array]


def interval(
    metric: Metric,
    task: Task,
    labels: Array,
    predictions: Array,
    how: Resampling,
    *,
    clusters: Array | None = None,
    weights: Array | None = None,
) -> Interval | None:
    """A metric and its interval; None where these rows don't define it.

    :param labels: shape (n,); ``predictions`` as in `evergreen.lifecycle.metrics`.
    :param clusters: each row's cluster, 0..c-1, shape (n,); every row is its own when None. Rows
        of a cluster are drawn together.
    :param weights: how much each row counts, shape (n,).
    """
    import numpy as np

    value = _measured(metric, task, labels, predictions, weights)
    sums = _sums_of(metric, task, labels, predictions, weights)
    (drawn,) = _draws((sums,), units_of(len(labels), clusters, how.seed), how)
    centre = _once(sums, len(labels))
    return _around(value, drawn - centre, how.confidence) if np.isfinite(value) else None


def improvement(
    metric: Metric,
    task: Task,
    labels: Array,
    ours: Array,
    theirs: Array,
    how: Resampling,
    *,
    clusters: Array | None = None,
) -> Interval | None:
    """How much better ``ours`` is than ``theirs`` on the same rows: positive is better.

    :returns: None where these rows don't define the metric.
    """
    import numpy as np

    pair = (theirs, ours)
    value = metric.improvement(*(_measured(metric, task, labels, each, None) for each in pair))
    sums = [_sums_of(metric, task, labels, each, None) for each in pair]
    others, own = _draws(sums, units_of(len(labels), clusters, how.seed), how)
    drawn = own - others if metric.greater_is_better else others - own
    centre = metric.improvement(*(_once(each, len(labels)) for each in sums))
    return _around(value, drawn - centre, how.confidence) if np.isfinite(value) else None


def mean_interval(values: Array, confidence: float, clusters: Array | None = None) -> Interval:
    """A mean over rows and its normal interval, without resampling.

    With clusters the variance is that of cluster sums about the mean (K.-Y. Liang and S. L.
    Zeger 1986), times c / (c - 1) for c clusters.
    """
    import numpy as np
    from scipy.stats import norm

    mean, off = float(values.mean()), values - values.mean()
    groups = off if clusters is None else np.bincount(clusters, weights=off)
    groups = groups[np.bincount(clusters) > 0] if clusters is not None else groups
    units = len(groups)
    if units < 2:
        return Interval(value=mean, low=-np.inf, high=np.inf)
    error = float(np.sqrt((groups**2).sum() * units / (units - 1))) / len(values)
    reach = float(norm.ppf((1 + confidence) / 2)) * error
    return Interval(value=mean, low=mean - reach, high=mean + reach)


def widened(found: Interval, deviation: float, confidence: float) -> Interval:
    """The interval with a further, independent source of error of this standard deviation."""
    import numpy as np
    from scipy.stats import norm

    reach = float(norm.ppf((1 + confidence) / 2)) * deviation
    below, above = found.value - found.low, found.high - found.value
    return Interval(
        value=found.value,
        low=found.value - float(np.hypot(below, reach)),
        high=found.value + float(np.hypot(above, reach)),
    )


def approximate(
    metric: Metric, task: Task, labels: Array, predictions: Array, weights: Array | None = None
) -> float:
    """A metric by its sums alone: fast, and off by the bins' width for metrics that rank."""
    return _once(_sums_of(metric, task, labels, predictions, weights), len(labels))


def units_of(rows: int, clusters: Array | None, seed: int) -> Array:
    """The unit that each row is drawn with, 0..u-1, shape (rows,)."""
    import numpy as np

    if clusters is not None:
        return clusters
    if rows <= UNITS:
        return np.arange(rows)
    return np.asarray(np.random.default_rng(seed).permutation(rows) % UNITS)


def _measured(
    metric: Metric, task: Task, labels: Array, predictions: Array, weights: Array | None
) -> float:
    import warnings

    with warnings.catch_warnings():  # scikit-learn's, about a class that these rows don't hold
        warnings.simplefilter("ignore")
        return measure(metric, task, labels, predictions, weights)


def _around(value: float, errors: Array, confidence: float) -> Interval | None:
    import numpy as np

    errors = errors[np.isfinite(errors)]
    if not len(errors):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(errors, [tail, 1 - tail])
    return Interval(value=float(value), low=float(value + low), high=float(value + high))


def _once(sums: _Sums, rows: int) -> float:
    """The metric by its sums, of every row once."""
    import numpy as np

    return float(sums.finish(sums.table(np.zeros(rows, dtype=np.int64), 1))[0])


def _draws(every: Sequence[_Sums], units: Array, how: Resampling) -> list[Array]:
    """Each metric in the same resamples, shape (resamples,) each."""
    import numpy as np

    count = int(units.max()) + 1
    tables = [sums.table(units, count) for sums in every]
    found: list[list[Array]] = [[] for _ in every]
    for part, size in enumerate(_chunks(how.resamples, count)):
        counts = _counts(count, size, how.seed, part)
        for place, (sums, table) in enumerate(zip(every, tables, strict=True)):
            found[place].append(sums.finish(counts @ table))
    return [np.concatenate(parts) for parts in found]


@lru_cache(maxsize=1)  # one metric after the other asks for the same 32 MB
def _counts(units: int, size: int, seed: int, part: int) -> Array:
    """How often each unit is drawn in each of ``size`` resamples, shape (size, units)."""
    import numpy as np

    rng = np.random.default_rng([seed, 1, part])  # not the numbers that made the units
    drawn = rng.integers(0, units, size=(size, units)) + units * np.arange(size)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units).astype(float)
    counts.flags.writeable = False
    return counts


def _chunks(total: int, width: int) -> Iterator[int]:
    step = max(1, _CELLS // max(width, 1))
    yield from (min(step, total - done) for done in range(0, total, step))


def _sums_of(
    metric: Metric, task: Task, labels: Array, predictions: Array, weights: Array | None
) -> _Sums:
    import numpy as np

    w = np.ones(len(labels)) if weights is None else weights
    if metric.name in {"roc_auc", "average_precision"}:
        return _ranks(metric.name, task, labels, predictions, w)
    if metric.name in {"balanced_accuracy", "f1_macro"}:
        return _confusion(metric.name, task, labels, predictions, w)
    if metric.name == "r2":
        return _columns(
            [w, w * labels, w * labels**2, w * (labels - predictions) ** 2],
            lambda s: 1 - s[:, 3] / (s[:, 2] - s[:, 1] ** 2 / s[:, 0]),
        )
    losses = row_losses(_mean_of(metric), task, labels, predictions)
    if losses is None:
        raise KeyError(f"{metric.name} is no function of sums over rows that is known here")
    root = metric.name == "root_mean_squared_error"
    return _columns(
        [w, w * losses],
        lambda s: np.sqrt(s[:, 1] / s[:, 0]) if root else np.asarray(s[:, 1] / s[:, 0]),
    )


def _mean_of(metric: Metric) -> Metric:
    return METRICS["mean_squared_error"] if metric.name == "root_mean_squared_error" else metric


def _columns(columns: list[Array], finish: Callable[[Array], Array]) -> _Sums:
    import numpy as np

    def table(units: Array, count: int) -> Array:
        return np.column_stack([np.bincount(units, weights=c, minlength=count) for c in columns])

    def quietly(sums: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return finish(sums)

    return _Sums(table, quietly)


def _confusion(name: str, task: Task, labels: Array, predictions: Array, w: Array) -> _Sums:
    """From each class's rows, answers and hits. A class that a resample lacks is left out of the
    mean, as scikit-learn does."""
    import numpy as np

    said, k = classes_of(task, predictions), 2 if task is Task.BINARY else predictions.shape[1]
    true, answered, hit = (
        [
            w * ((labels == c) if what != 1 else True) * ((said == c) if what else True)
            for c in range(k)
        ]
        for what in range(3)
    )

    def finish(sums: Array) -> Array:
        true, answered, hit = sums[:, :k], sums[:, k : 2 * k], sums[:, 2 * k :]
        if name == "balanced_accuracy":
            scores = np.where(true > 0, hit / true, np.nan)
        else:
            there = true + answered
            scores = np.where(there > 0, 2 * hit / there, np.nan)
        return np.asarray(np.nanmean(scores, axis=1))

    return _columns([*true, *answered, *hit], finish)


def _ranks(name: str, task: Task, labels: Array, predictions: Array, w: Array) -> _Sums:
    """From how many rows of a class, and how many others, have a score in each bin.

    With each distinct score, or `BINS` bins of equally many rows, in rising order. Several
    classes: one against the rest, and the mean.
    """
    import numpy as np

    scores = predictions[:, None] if task is Task.BINARY else predictions
    classes = (1,) if task is Task.BINARY else tuple(range(scores.shape[1]))
    binned = [_binned(column, max(20, BINS // len(classes))) for column in scores.T]
    widths = [2 * (int(bins.max()) + 1) for bins in binned]

    def table(units: Array, count: int) -> Array:
        cells = [
            np.bincount(
                units * width + 2 * bins + (labels == each), weights=w, minlength=count * width
            ).reshape(count, width)
            for bins, width, each in zip(binned, widths, classes, strict=True)
        ]
        return np.concatenate(cells, axis=1)

    def finish(sums: Array) -> Array:
        of = _auc if name == "roc_auc" else _average_precision
        parts = np.split(sums, np.cumsum(widths)[:-1], axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.mean([of(p[:, 1::2], p[:, 0::2]) for p in parts], axis=0))

    return _Sums(table, finish)


def _binned(scores: Array, most: int) -> Array:
    import numpy as np

    distinct, codes = np.unique(scores, return_inverse=True)
    if len(distinct) <= most:
        return np.asarray(codes)
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, most + 1)[1:-1]))
    return np.asarray(np.searchsorted(edges, scores, side="right"))


def _auc(positive: Array, negative: Array) -> Array:
    """The share of (positive, negative) pairs ranked right, ties counting half (H. B. Mann and
    D. R. Whitney 1947)."""
    import numpy as np

    lower = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return np.asarray((positive * lower).sum(axis=1) / pairs)


def _average_precision(positive: Array, negative: Array) -> Array:
    """Precision at each score, weighted by the recall it adds."""
    import numpy as np

    found = np.cumsum(positive[:, ::-1], axis=1)
    asked = found + np.cumsum(negative[:, ::-1], axis=1)
    precision = np.where(asked > 0, found / asked, 0.0)
    return np.asarray((positive[:, ::-1] * precision).sum(axis=1) / found[:, -1])
