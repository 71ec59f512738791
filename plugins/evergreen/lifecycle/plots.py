"""Pictures of an evaluation: figures without pyplot, so nothing is shared and nothing leaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Task

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Array = np.ndarray[Any, np.dtype[Any]]

BINS = 10
TOP = 20
_POINTS = 5_000


def figures(
    task: Task, labels: Array, answers: Mapping[str, Array], importance: Mapping[str, float]
) -> Iterator[tuple[str, Figure]]:
    """Yield each picture with its name.

    :param labels: shape (n,), as in `evergreen.lifecycle.metrics`; so are the ``answers``.
    """
    yield "calibration", _calibration(task, labels, answers)
    if task is Task.BINARY and 0 < labels.sum() < len(labels):
        yield "curves", _curves(labels, answers)
    if task is Task.REGRESSION:
        yield "residuals", _residuals(labels, answers["candidate"])
    yield "importance", _importance(importance)


def _figure(
    width: float = 5.0, columns: int = 1, height: float = 4.5, left: float = 1.0
) -> tuple[Figure, list[Axes]]:
    """Axes side by side; all lengths in inches, ``left`` of each one's labels.

    The margins are given (room for numbers of seven characters): a layout that measures every text
    takes as long as the drawing.
    """
    from matplotlib.figure import Figure

    figure, whole, between = Figure(figsize=(width * columns, height)), width * columns, left + 0.15
    axes = [figure.add_subplot(1, columns, k + 1) for k in range(columns)]
    figure.subplots_adjust(
        left=left / whole,
        right=1 - 0.15 / whole,
        bottom=0.6 / height,
        top=1 - 0.4 / height,
        wspace=between / (width - between),
    )
    return figure, axes


def _calibration(task: Task, labels: Array, answers: Mapping[str, Array]) -> Figure:
    import numpy as np

    figure, (axes,) = _figure()
    low, high = np.inf, -np.inf
    for who, found in answers.items():
        several = task is Task.MULTICLASS
        said = found.max(axis=1) if several else found
        happened = (found.argmax(axis=1) == labels) if several else labels
        bins = [b for b in np.array_split(np.argsort(said, kind="stable"), BINS) if len(b)]
        points = np.array([(said[b].mean(), happened[b].mean()) for b in bins])
        axes.plot(points[:, 0], points[:, 1], marker="o", label=who)
        low, high = min(low, points.min()), max(high, points.max())
    axes.plot([low, high], [low, high], color="grey", linestyle=":")
    axes.set(xlabel="mean prediction", ylabel="mean observed", title="Calibration on the holdout")
    axes.legend()
    return figure


def _curves(labels: Array, answers: Mapping[str, Array]) -> Figure:
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure, (roc, pr) = _figure(columns=2)
    for who, found in answers.items():
        wrong, right, _ = roc_curve(labels, found)
        roc.plot(wrong, right, label=who)
        precision, recall, _ = precision_recall_curve(labels, found)
        pr.plot(recall, precision, label=who)
    roc.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    pr.set(xlabel="recall", ylabel="precision", title="Precision and recall")
    roc.legend()
    return figure


def _residuals(labels: Array, predictions: Array) -> Figure:
    figure, (axes,) = _figure()
    step = max(1, len(labels) // _POINTS)
    axes.scatter(predictions[::step], (labels - predictions)[::step], s=4, alpha=0.4)
    axes.axhline(0.0, color="grey", linestyle=":")
    axes.set(xlabel="prediction", ylabel="observed less predicted", title="Residuals")
    return figure


def _importance(importance: Mapping[str, float]) -> Figure:
    top = sorted(importance.items(), key=lambda item: item[1])[-TOP:]
    left = 0.3 + 0.1 * max([4, *(len(name) for name, _ in top)])  # 0.1: capitals of 10 points
    figure, (axes,) = _figure(width=4.5 + left, height=1.0 + 0.25 * max(len(top), 4), left=left)
    axes.barh([name for name, _ in top], [value for _, value in top])
    axes.set(xlabel="loss of the primary metric when shuffled", title="Permutation importance")
    return figure
