"""The metrics a declaration may name: which task each is for and which way is better.

Names are scikit-learn's, but for a model's own business figure. How they are computed is
`evergreen.lifecycle.metrics`; here is only what can be known without importing scikit-learn or
a model's module.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Task(StrEnum):
    """What kind of answer the model gives."""

    BINARY = "binary_classification"
    MULTICLASS = "multiclass_classification"
    REGRESSION = "regression"

    @property
    def classifies(self) -> bool:
        """Whether labels are classes."""
        return self is not Task.REGRESSION


@dataclass(frozen=True)
class Metric:
    """A metric's name and what must be known of it to judge by it.

    :ivar function: of a model's own figure, the KPI: ``module:name`` in ``folder``, the model's.
        It gives one value a row, and the figure is their mean. None for scikit-learn's.
    """

    name: str
    tasks: frozenset[Task]
    greater_is_better: bool
    function: str | None = None
    folder: Path | None = None

    def improvement(self, champion: float, candidate: float) -> float:
        """How much better ``candidate`` is: positive is better, whichever way the metric runs."""
        return (candidate - champion) if self.greater_is_better else (champion - candidate)


_ANY_CLASS = frozenset({Task.BINARY, Task.MULTICLASS})
_BINARY = frozenset({Task.BINARY})
_REGRESSION = frozenset({Task.REGRESSION})

METRICS = {
    name: Metric(name, tasks, greater)
    for name, tasks, greater in (
        ("log_loss", _ANY_CLASS, False),
        ("brier_score", _BINARY, False),
        ("roc_auc", _ANY_CLASS, True),
        ("average_precision", _BINARY, True),
        ("accuracy", _ANY_CLASS, True),
        ("balanced_accuracy", _ANY_CLASS, True),
        ("f1_macro", _ANY_CLASS, True),
        ("mean_absolute_error", _REGRESSION, False),
        ("mean_squared_error", _REGRESSION, False),
        ("root_mean_squared_error", _REGRESSION, False),
        ("r2", _REGRESSION, True),
    )
}
