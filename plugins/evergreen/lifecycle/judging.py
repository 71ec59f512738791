"""Judge: has a version surely become too bad?

By realised rows where enough matured, else by the estimate. Beyond a bound only when the better
end of the interval is, which includes the error of the holdout that the bound comes from; or when
a model that knows only labels would have done no worse on the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration, Metric
from evergreen.lifecycle.contracts import Interval
from evergreen.lifecycle.estimation import Estimate, Holdout
from evergreen.lifecycle.intervals import Resampling, improvement, interval, widened
from evergreen.lifecycle.rules import FEWEST_CLUSTERS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]

_UNITS = {"day": "D", "hour": "h"}


@dataclass(frozen=True)
class Seen:
    """A window's rows.

    :ivar rows: of the prediction log with labels, shape (n, …); ``answers`` of each.
    :ivar measured: places of rows with a known label of a class that the version knows, shape (m,).
    :ivar labels: their class indices or values, shape (m,).
    :ivar clusters: each row's cluster, shape (n,); None when rows are resampled alone.
    """

    rows: pd.DataFrame
    answers: Array
    measured: Array
    labels: Array
    clusters: Array | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def matured(self) -> int:
        """Rows whose label is known."""
        return int(self.rows["label"].notna().sum())

    @cached_property
    def given(self) -> Array:
        """The answers beside ``labels``."""
        return self.answers[self.measured]

    def clusters_of(self, places: Array) -> Array | None:
        """The clusters of some rows, numbered anew."""
        import numpy as np

        if self.clusters is None:
            return None
        return np.asarray(np.unique(self.clusters[places], return_inverse=True)[1])


@dataclass(frozen=True)
class _Bound:
    """What the metric must not be beyond: ``named`` in words, known with a standard ``error``."""

    value: float
    named: str
    error: float


@dataclass(frozen=True)
class Judgement:
    """What the declared metric says of the version."""

    basis: str = "nothing"
    bound: float | None = None
    because: tuple[str, ...] = ()
    skipped: str | None = None
    violated: bool = field(default=False)


def watched_metric(declaration: Declaration) -> Metric:
    """The metric that is judged: the declared one, or the primary."""
    asked = declaration.monitoring.performance.metric
    return declaration.metric(asked) if asked else declaration.primary


def judge(
    declaration: Declaration,
    seen: Seen,
    holdout: Holdout,
    realised: Mapping[str, Interval],
    estimated: Estimate,
    how: Resampling,
) -> Judgement:
    """By realised rows where enough matured, else by the estimate, else not."""
    metric = watched_metric(declaration)
    bounds = _bounds(declaration, metric, holdout, how)
    bound = bounds[0].value if bounds else None
    immature = _immature(declaration, seen)
    if immature is None and metric.name in realised:
        because = [
            *_beyond(metric, "realised", realised[metric.name], bounds, how),
            *_naive(declaration, metric, seen, holdout, how),
        ]
        return Judgement("realised", bound, tuple(because), violated=bool(because))
    if metric.name in estimated.metrics:
        value = estimated.metrics[metric.name]
        because = [*_beyond(metric, "estimated", value, bounds, how)]
        return Judgement("estimated", bound, tuple(because), violated=bool(because))
    why = immature or f"the labels don't define {metric.name}"
    none = "" if declaration.monitoring.estimate else "; estimates are switched off"
    return Judgement(bound=bound, skipped=f"{why}, and there is no estimate{none}")


def _immature(declaration: Declaration, seen: Seen) -> str | None:
    """Why the realised metric doesn't count yet; None when it does."""
    watched = declaration.monitoring
    share, needed = seen.matured / max(len(seen.rows), 1), watched.performance.matured_at_least
    if len(seen.labels) < watched.min_rows:
        return f"{len(seen.labels):,} labels to measure by, {watched.min_rows:,} needed"
    if share < needed:
        return f"{share:.0%} of the window's labels are known, {needed:.0%} needed"
    return None


def _bounds(
    declaration: Declaration, metric: Metric, holdout: Holdout, how: Resampling
) -> list[_Bound]:
    """The relative and the absolute bound, the stricter one first."""
    asked, bounds = declaration.monitoring.performance, []
    reference = holdout.shown(declaration).get(metric.name)
    if reference is not None:
        reach = asked.tolerance * abs(reference)
        relative = reference - reach if metric.greater_is_better else reference + reach
        named = f"{asked.tolerance:.0%} worse than {reference:.4f} at promotion"
        error = (1 + asked.tolerance) * _error_of(declaration, metric, holdout, how)
        bounds.append(_Bound(relative, named, error))
    if asked.bound is not None:
        bounds.append(_Bound(asked.bound, "the declared bound", 0.0))
    return sorted(bounds, key=lambda each: each.value, reverse=metric.greater_is_better)


def _error_of(declaration: Declaration, metric: Metric, holdout: Holdout, how: Resampling) -> float:
    """The standard error of what the version showed on its holdout: a sample, too."""
    from scipy.stats import norm

    clusters, _ = clusters_of_times(declaration, holdout.rows["event_timestamp"])
    found = interval(
        metric, declaration.task, holdout.labels, holdout.answers, how, clusters=clusters
    )
    width = found.high - found.low if found is not None else 0.0
    return width / 2 / float(norm.ppf((1 + how.confidence) / 2))


def _beyond(
    metric: Metric, basis: str, value: Interval, bounds: Sequence[_Bound], how: Resampling
) -> Iterator[str]:
    """The first bound that the metric is surely beyond."""
    for bound in bounds:
        sure = widened(value, bound.error, how.confidence)
        best = sure.high if metric.greater_is_better else sure.low
        if metric.improvement(bound.value, best) < 0:
            side = "below" if metric.greater_is_better else "above"
            error = ", the holdout's own error included" if bound.error else ""
            yield (
                f"{basis} {metric.name} {value.value:.4f} ({how.confidence:.0%} interval "
                f"{sure.low:.4f} to {sure.high:.4f}{error}) lies {side} {bound.value:.4f}, "
                f"{bound.named}"
            )
            return


def _naive(
    declaration: Declaration, metric: Metric, seen: Seen, holdout: Holdout, how: Resampling
) -> Iterator[str]:
    """Whether the version is surely no better than a model that knows only labels."""
    naive = holdout.naive_answers(len(seen.labels))
    found = improvement(
        metric, declaration.task, seen.labels, seen.given, naive, how,
        clusters=seen.clusters_of(seen.measured),
    )  # fmt: skip
    if found is not None and found.high <= 0:
        yield (
            f"no better than a naive model ({declaration.baseline}): realised {metric.name} "
            f"improves on it by {found.value:+.4f} ({how.confidence:.0%} interval {found.low:+.4f} "
            f"to {found.high:+.4f})"
        )


def clusters_of_times(
    declaration: Declaration, times: pd.Series
) -> tuple[Array | None, tuple[str, ...]]:
    """Which rows are resampled together: a smaller unit where too few of the declared one are in
    the window to tell how much one differs from the next."""
    import pandas as pd

    asked = declaration.gate.resample
    for unit in ("day", "hour")[("day", "hour", "row").index(asked) :]:
        codes = pd.factorize(times.dt.floor(_UNITS[unit]))[0]
        if len(codes) and int(codes.max()) + 1 >= FEWEST_CLUSTERS:
            used: tuple[Array | None, str] = codes, unit
            break
    else:
        used = None, "row"
    note = f"fewer than {FEWEST_CLUSTERS} {asked}s: resampled by {used[1]}, intervals are narrow"
    return used[0], (note,) if used[1] != asked else ()
