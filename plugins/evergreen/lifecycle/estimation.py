"""How a version does before labels are known, estimated from its own answers.

Classifiers, by confidence-based performance estimation (J. Białek et al., "Estimating model
performance under covariate shift without labels", arXiv:2401.08348, 2024): the version's answers
are calibrated on its holdout, each row counts for every class by its calibrated chance, and so a
metric has an expected value. Regressors, by direct loss estimation (NannyML, the same authors'
library): a second model learns from the holdout how large the error is, given features and answer.

Both hold while inputs shift and the relation of inputs to labels stays: a change of concept is
what they can't see. The interval holds two errors: that of which rows came, and that of having
learned from a holdout no larger than it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration, Task
from evergreen.lifecycle.contracts import Evaluation, FeatureSet, Interval, Origin
from evergreen.lifecycle.intervals import (
    Resampling,
    approximate,
    interval,
    mean_interval,
    units_of,
    widened,
)
from evergreen.lifecycle.metrics import measure_all
from evergreen.lifecycle.sets import read_rows
from evergreen.store import Store

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]
    Calibrator = Callable[[Array, Array, Array], Array]  # said, happened, asked → chance

FEWEST = 200  # labelled holdout rows to learn from
LEARNED = 20_000  # holdout rows; more are sampled
ESTIMATED = 100_000  # rows of a window; more are sampled
_REFITS = 20
_REFITTED = 5_000  # rows of a window; only how refits differ is asked of them
_FOLDS = 5
_BY_ERROR = {  # metric → the power of a row's error that it is the mean of, and its own root
    "mean_absolute_error": (1, 1),
    "mean_squared_error": (2, 1),
    "root_mean_squared_error": (2, 2),
}


@dataclass(frozen=True)
class Holdout:
    """What a version showed on its holdout when it was promoted.

    :ivar labels: class indices or values, shape (n,).
    :ivar answers: the version's, as in `evergreen.lifecycle.metrics`; ``naive`` alike.
    :ivar rows: ``partition``, ``row_id`` and ``event_timestamp`` of each, shape (n, 3).
    """

    evaluation: Evaluation
    labels: Array
    answers: Array
    naive: Array
    rows: pd.DataFrame
    origin: Origin | None = field(default=None, repr=False)

    @classmethod
    def load(cls, declaration: Declaration, store: Store, origin: Origin) -> Holdout:
        """Read it from the evaluation that promoted the version."""
        evaluation = Evaluation.load(store, origin.evaluation)
        table = store.get_table(evaluation.predictions)
        labels = table["label"].to_numpy()
        return cls(
            evaluation=evaluation,
            labels=labels.astype(int if declaration.task.classifies else float),
            answers=_answers(declaration.task, evaluation, table, "candidate"),
            naive=_answers(declaration.task, evaluation, table, "baseline"),
            rows=table[["partition", "row_id", "event_timestamp"]],
            origin=origin,
        )

    def shown(self, declaration: Declaration) -> dict[str, float]:
        """The declared metrics at promotion; measured now where they were declared later."""
        known = self.evaluation.metrics["candidate"]
        if set(declaration.metrics) <= set(known):
            return {name: known[name] for name in declaration.metrics}
        return {
            name: known.get(name, value)
            for name, value in measure_all(declaration, self.labels, self.answers).items()
        }

    def naive_answers(self, rows: int) -> Array:
        """The naive model's answer, which is the same for every row, ``rows`` times."""
        import numpy as np

        return np.repeat(self.naive[:1], rows, axis=0)

    def features(self, store: Store) -> pd.DataFrame:
        """The holdout's rows with what the version was asked by, in the order of ``labels``.

        :raises ValueError: when the feature set lacks one of them.
        """
        if self.origin is None:
            raise ValueError("this holdout was not read from a promoted version's origin")
        feature_set = FeatureSet.load(store, self.origin.features)
        rows = read_rows(store, feature_set, "holdout")
        own = self.rows[["partition", "row_id"]]
        joined = own.merge(rows, on=["partition", "row_id"], how="left", indicator="found")
        if len(joined) != len(self.rows) or (joined["found"] != "both").any():
            raise ValueError(
                f"the holdout of version {self.origin.version} has {len(self.rows):,} rows, and the "
                f"features {feature_set.snapshot[:12]} give back others: one of them was changed"
            )
        return joined[[feature.name for feature in feature_set.features]]


@dataclass(frozen=True)
class Estimate:
    """Expected metrics, and why others have none.

    :ivar metrics: by name, those that an estimate exists for.
    :ivar missing: what isn't estimated, in words.
    """

    metrics: dict[str, Interval] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def estimate(
    declaration: Declaration,
    store: Store,
    holdout: Holdout,
    rows: pd.DataFrame,
    answers: Array,
    how: Resampling,
    *,
    clusters: Array | None = None,
) -> Estimate:
    """Estimate the declared metrics of rows whose labels nobody needs to know.

    :param rows: of the prediction log, with the features as they were asked for; shape (n, …).
    :param answers: the version's, as in `evergreen.lifecycle.metrics`.
    :param clusters: each row's cluster, shape (n,); as in `evergreen.lifecycle.intervals`.
    """
    import numpy as np

    if len(holdout.labels) < FEWEST:
        why = f"the holdout has {len(holdout.labels):,} rows, {FEWEST:,} are needed to learn from"
        return Estimate(missing=(why,))
    if len(answers) > ESTIMATED:
        drawn = np.sort(np.random.default_rng(how.seed).permutation(len(answers))[:ESTIMATED])
        rows, answers = rows.iloc[drawn], answers[drawn]
        clusters = None if clusters is None else np.unique(clusters[drawn], return_inverse=True)[1]
    if not declaration.task.classifies:
        return _by_error(declaration, store, holdout, rows, answers, how, clusters)
    present = np.unique(holdout.labels)
    if len(present) < 2:
        only = holdout.evaluation.classes[int(present[0])]
        return Estimate(missing=(f"the holdout holds the class {only} only: no calibration",))
    return _by_confidence(declaration, holdout, answers, how, clusters)


def calibrators(task: Task, labels: Array, answers: Array) -> tuple[Calibrator, ...]:
    """What suits the answers of each class best (of class 1, for two): a line in the logit
    (J. Platt 1999), or isotonic regression (B. Zadrozny and C. Elkan 2002).

    Isotonic regression follows any shape and, on few rows, chance as well: it makes answers look
    more telling than they are. So the one with the smaller Brier score in five folds is taken.
    """
    if task is Task.BINARY:
        return (_better(answers, labels == 1),)
    return tuple(_better(answers[:, c], labels == c) for c in range(answers.shape[1]))


def calibrated(
    task: Task, labels: Array, answers: Array, asked: Array, by: Sequence[Calibrator]
) -> Array:
    """The chance of each class, for ``asked`` answers, learned from labelled ``answers``; for
    several classes one against the rest, and normalised.

    :returns: shape (len(asked), k); rows sum to 1.
    """
    import numpy as np

    if task is Task.BINARY:
        chance = by[0](answers, labels == 1, asked)
        return np.column_stack([1 - chance, chance])
    every = np.column_stack(
        [fit(answers[:, c], labels == c, asked[:, c]) for c, fit in enumerate(by)]
    )
    total = every.sum(axis=1, keepdims=True)
    return np.where(total > 0, every / np.where(total > 0, total, 1.0), asked)


def _better(said: Array, happened: Array) -> Calibrator:
    import numpy as np

    rarer = min(int(happened.sum()), int((~happened).sum()))
    if rarer < _FOLDS * 2:
        return _logistic
    places = np.argsort(happened, kind="stable")
    folds = np.empty(len(said), dtype=int)
    folds[places] = np.arange(len(said)) % _FOLDS  # each fold has its share of the rarer class
    scores = []
    for fit in (_logistic, _isotonic):
        error = np.empty(len(said))
        for fold in range(_FOLDS):
            out = folds == fold
            error[out] = fit(said[~out], happened[~out], said[out]) - happened[out]
        scores.append((error**2).mean())
    return _isotonic if scores[1] < scores[0] else _logistic


def _isotonic(said: Array, happened: Array, asked: Array) -> Array:
    import numpy as np
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    return np.asarray(fitted.fit(said, happened.astype(float)).predict(asked))


def _logistic(said: Array, happened: Array, asked: Array) -> Array:
    import numpy as np
    from scipy.special import expit, logit
    from sklearn.linear_model import LogisticRegression

    if happened.all() or not happened.any():
        return np.full(len(asked), float(happened[0]))
    known, now = (logit(np.clip(each, 1e-6, 1 - 1e-6)) for each in (said, asked))
    line = LogisticRegression(C=1e6).fit(known[:, None], happened)
    slope = max(float(line.coef_[0, 0]), 0.0)  # a surer answer is never less likely
    return np.asarray(expit(slope * now + float(line.intercept_[0])))


def _by_confidence(
    declaration: Declaration,
    holdout: Holdout,
    answers: Array,
    how: Resampling,
    clusters: Array | None,
) -> Estimate:
    """Every row stands once for each class it may be of, and weighs as much as that is likely."""
    import numpy as np

    task, rng = declaration.task, np.random.default_rng(how.seed)
    drawn = rng.permutation(len(holdout.labels))[:LEARNED]
    labels, said = holdout.labels[drawn], holdout.answers[drawn]
    by = calibrators(task, labels, said)
    chances = calibrated(task, labels, said, answers, by)
    few = answers[rng.permutation(len(answers))[:_REFITTED]]
    refits = []
    for _ in range(_REFITS):  # what other holdouts of the same size would have taught
        again = rng.integers(0, len(labels), len(labels))
        refits.append(calibrated(task, labels[again], said[again], few, by).ravel())
    k = chances.shape[1]
    units = np.repeat(units_of(len(answers), clusters, how.seed), k)
    (outcomes, repeated), (some, asked) = (_every_outcome(each, k) for each in (answers, few))
    found = {}
    for name in declaration.metrics:
        metric = declaration.metric(name)
        value = interval(
            metric, task, outcomes, repeated, how, clusters=units, weights=chances.ravel()
        )
        if value is None:
            continue
        others = [approximate(metric, task, some, asked, each) for each in refits]
        found[name] = widened(value, float(np.std(others, ddof=1)), how.confidence)
    missing = [
        f"{name}: these answers don't define it"
        for name in declaration.metrics
        if name not in found
    ]
    return Estimate(found, tuple(missing))


def _every_outcome(answers: Array, k: int) -> tuple[Array, Array]:
    """Each answer ``k`` times, once beside each class: labels and answers."""
    import numpy as np

    return np.tile(np.arange(k), len(answers)), np.repeat(answers, k, axis=0)


def _by_error(
    declaration: Declaration,
    store: Store,
    holdout: Holdout,
    rows: pd.DataFrame,
    answers: Array,
    how: Resampling,
    clusters: Array | None,
) -> Estimate:
    """The mean of what each row's error is expected to be."""
    import numpy as np

    drawn = np.random.default_rng(how.seed).permutation(len(holdout.labels))[:LEARNED]
    features = holdout.features(store).iloc[drawn]
    errors = np.abs(holdout.labels - holdout.answers)[drawn]
    learned, asked = _encoded(features, holdout.answers[drawn], rows, answers)
    expected = {
        power: _expected(learned, errors**power, asked, how.seed)
        for power in {_BY_ERROR[name][0] for name in declaration.metrics if name in _BY_ERROR}
    }
    found = {}
    for name in declaration.metrics:
        if name not in _BY_ERROR:
            continue
        power, root = _BY_ERROR[name]
        mean = mean_interval(expected[power], how.confidence, clusters)
        known = errors**power
        relative = float(known.std() / np.sqrt(len(known)) / known.mean()) if known.any() else 0.0
        mean = widened(mean, mean.value * relative, how.confidence)
        ends = (max(end, 0.0) ** (1 / root) for end in (mean.value, mean.low, mean.high))
        found[name] = Interval(**dict(zip(("value", "low", "high"), ends, strict=True)))
    missing = (
        f"{name}: for regression no estimate from errors exists"
        for name in declaration.metrics
        if name not in found
    )
    return Estimate(found, tuple(missing))


def _expected(learned: Array, losses: Array, asked: Array, seed: int) -> Array:
    """Each asked row's expected loss, never below 0."""
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(
        max_iter=60, min_samples_leaf=40, early_stopping=False, random_state=seed
    )
    return np.asarray(np.clip(model.fit(learned, losses).predict(asked), 0.0, None))


def _encoded(
    features: pd.DataFrame, said: Array, rows: pd.DataFrame, answers: Array
) -> tuple[Array, Array]:
    """Both tables as numbers, with the answer as a last column: text by how its values rank in
    mean answer, which trees split well; a value the holdout lacks is missing."""
    import numpy as np
    import pandas as pd

    learned, asked = [], []
    for name, column in features.items():
        if pd.api.types.is_numeric_dtype(column):
            learned.append(column.to_numpy("float64"))
            asked.append(rows[name].to_numpy("float64"))
            continue
        means = pd.Series(said, index=column.to_numpy()).groupby(level=0).mean()
        places = {value: float(place) for place, value in enumerate(means.sort_values().index)}
        learned.append(column.map(places).to_numpy("float64"))
        asked.append(rows[name].map(places).to_numpy("float64"))
    return np.column_stack([*learned, said]), np.column_stack([*asked, answers])


def _answers(task: Task, evaluation: Evaluation, table: pd.DataFrame, who: str) -> Array:
    columns = (
        [f"{who}_{k}" for k in range(len(evaluation.classes))] if task is Task.MULTICLASS else [who]
    )
    values = table[columns].to_numpy("float64")
    return values if task is Task.MULTICLASS else values[:, 0]
