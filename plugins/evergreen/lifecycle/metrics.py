"""How metrics are computed: scikit-learn's functions and a model's own, one calling convention.

Throughout, ``labels`` are class indices 0..k-1 (or values for regression) of shape (n,), and
``predictions`` are: binary, the probability of class 1, shape (n,); multi-class, probabilities
of shape (n, k); regression, values of shape (n,). ``weights`` of shape (n,) count how often a
row stands in a resample. A model's KPI gets labels and predictions in these shapes and gives one
value a row; it is the mean of them.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration, Metric, Task
from evergreen.errors import DeclarationError
from evergreen.lifecycle.modules import load_function

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

BINS = 10
PREDICTS_CLASSES = frozenset({"accuracy", "balanced_accuracy", "f1_macro"})


def measure(
    metric: Metric, task: Task, labels: Array, predictions: Array, weights: Array | None = None
) -> float:
    """One metric; NaN where these rows don't define it (ROC AUC of a single class).

    :raises DeclarationError: for a KPI whose function can't be used.
    :raises KeyError: for a metric that is neither a KPI nor one of `evergreen.declaration.METRICS`.
    """
    import numpy as np

    if metric.function is not None:
        values = own_values(metric, task, labels, predictions)
        return float(np.average(values, weights=weights)) if len(values) else float("nan")
    return _measure(metric.name, task, labels, predictions, weights)


def _measure(
    name: str, task: Task, labels: Array, predictions: Array, weights: Array | None
) -> float:
    import numpy as np
    from sklearn import metrics

    if name in PREDICTS_CLASSES:
        answers = classes_of(task, predictions)
        function = {
            "accuracy": metrics.accuracy_score,
            "balanced_accuracy": metrics.balanced_accuracy_score,
            "f1_macro": _f1_macro,
        }[name]
        return float(function(labels, answers, sample_weight=weights))
    if name == "log_loss":
        known = np.arange(2 if task is Task.BINARY else predictions.shape[1])
        return float(metrics.log_loss(labels, predictions, sample_weight=weights, labels=known))
    if name in {"roc_auc", "average_precision"} and len(np.unique(labels)) < _needed(
        task, predictions
    ):
        return float("nan")
    if name == "roc_auc" and task is Task.MULTICLASS:
        return float(
            metrics.roc_auc_score(labels, predictions, multi_class="ovr", sample_weight=weights)
        )
    function = {
        "brier_score": metrics.brier_score_loss,
        "roc_auc": metrics.roc_auc_score,
        "average_precision": metrics.average_precision_score,
        "mean_absolute_error": metrics.mean_absolute_error,
        "mean_squared_error": metrics.mean_squared_error,
        "root_mean_squared_error": metrics.root_mean_squared_error,
        "r2": metrics.r2_score,
    }[name]
    return float(function(labels, predictions, sample_weight=weights))


def measure_all(declaration: Declaration, labels: Array, predictions: Array) -> dict[str, float]:
    """Every declared metric that these rows define, the primary one first."""
    import numpy as np

    values = {
        name: measure(declaration.metric(name), declaration.task, labels, predictions)
        for name in declaration.metrics
    }
    return {name: value for name, value in values.items() if np.isfinite(value)}


def measure_quietly(
    declaration: Declaration, labels: Array, predictions: Array
) -> dict[str, float]:
    """`measure_all` of few rows, without scikit-learn's warnings about what they don't define."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return measure_all(declaration, labels, predictions)


def calibration(task: Task, labels: Array, predictions: Array) -> dict[str, float]:
    """How far answers are from what happened, on average.

    For classes, the expected calibration error over bins of equally many rows (M. Naeini et al.
    2015; equal counts after J. Nixon et al. 2019), for several of the most probable class; for
    regression, the mean residual and the error of the means of such bins.

    :returns: numbers in the units of a probability, or of the label.
    """
    import numpy as np

    if task is Task.MULTICLASS:
        happened = (predictions.argmax(axis=1) == labels).astype(float)
        said = predictions.max(axis=1)
    else:
        happened, said = labels.astype(float), predictions
    order = np.argsort(said, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    error = sum(len(b) * abs(happened[b].mean() - said[b].mean()) for b in bins) / len(labels)
    return {
        "expected_calibration_error": float(error),
        "mean_prediction": float(said.mean()),
        "mean_observed": float(happened.mean()),
        "mean_residual": float((happened - said).mean()),
    }


def classes_of(task: Task, predictions: Array) -> Array:
    """The class index each prediction stands for, shape (n,)."""
    return (predictions >= 0.5).astype(int) if task is Task.BINARY else predictions.argmax(axis=1)


def row_losses(metric: Metric, task: Task, labels: Array, predictions: Array) -> Array | None:
    """Each row's share of a metric that is a mean over rows, shape (n,); None for other metrics.

    :raises DeclarationError: for a KPI whose function can't be used.
    """
    import numpy as np

    name = metric.name
    if metric.function is not None:
        return own_values(metric, task, labels, predictions)
    if name == "log_loss":
        own = (
            np.where(labels == 1, predictions, 1 - predictions)
            if task is Task.BINARY
            else predictions[np.arange(len(labels)), labels.astype(int)]
        )
        return np.asarray(-np.log(np.clip(own, np.finfo(own.dtype).eps, 1.0)))
    if name == "accuracy":
        return np.asarray(classes_of(task, predictions) == labels, dtype=float)
    if name in {"brier_score", "mean_squared_error"}:
        return np.asarray((labels - predictions) ** 2)
    if name == "mean_absolute_error":
        return np.asarray(np.abs(labels - predictions))
    return None


def own_values(metric: Metric, task: Task, labels: Array, predictions: Array) -> Array:
    """What a model's KPI says of each row, shape (n,), float64.

    The function gets copies: what it does to them changes no other measurement.

    :raises DeclarationError: when the function is not there, raises, or gives anything but one
        finite number a row.
    """
    import numpy as np

    function = own_function(metric)
    where = _place(metric)
    allowed = (
        f"It gets labels of shape ({len(labels)},) and predictions of shape {predictions.shape}, "
        f"and returns one finite number for each row, shape ({len(labels)},)."
    )
    known = labels.astype(int) if task.classifies else labels.copy()
    try:
        given = function(known, predictions.copy())
        values = np.asarray(given, dtype=float)
    except Exception as error:  # whatever a model's own code raises, said with its place
        raise DeclarationError(
            f"{where} raised {type(error).__name__}: {error}. {allowed}"
        ) from error
    if values.shape != (len(labels),):
        found = f"{type(given).__name__} of shape {values.shape}"
        raise DeclarationError(f"{where} returned {found}. {allowed}")
    if not np.isfinite(values).all():
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        count = int((~np.isfinite(values)).sum())
        raise DeclarationError(
            f"{where} returned {values[first]} for row {first} (label {labels[first]}, prediction "
            f"{predictions[first]}), and {count:,} such values in all. {allowed}"
        )
    return values


def own_function(metric: Metric) -> Callable[[Array, Array], Any]:
    """The function of a model's KPI.

    :raises DeclarationError: when it is not there, or doesn't take two arguments.
    """
    assert metric.function is not None  # noqa: S101 - asked of a KPI only, which has both
    assert metric.folder is not None  # noqa: S101 - a KPI knows its folder
    function = load_function(metric.folder, metric.function)
    try:
        inspect.signature(function).bind("labels", "predictions")
    except ValueError:
        return function  # compiled, and doesn't tell what it takes; calling it will
    except TypeError as error:
        raise DeclarationError(
            f"{_place(metric)} can't be called with (labels, predictions): {error}. Those two are "
            "what it gets."
        ) from error
    return function


def _place(metric: Metric) -> str:
    module, _, name = (metric.function or "").partition(":")
    return f"{(metric.folder or Path()) / module}.py: {name}, the KPI {metric.name},"


def _f1_macro(labels: Array, answers: Array, sample_weight: Array | None) -> float:
    from sklearn.metrics import f1_score

    return float(
        f1_score(labels, answers, average="macro", sample_weight=sample_weight, zero_division=0.0)
    )


def _needed(task: Task, predictions: Array) -> int:
    return predictions.shape[1] if task is Task.MULTICLASS else 2
