"""What the gate may look at: a run's results, the champion's, and their answers to the holdout,
those that the champion gave in production among them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration, Task
from evergreen.lifecycle.bootstrap import Difference, paired_difference
from evergreen.lifecycle.contracts import (
    Champion,
    Evaluation,
    InfrastructureReport,
    SkewReport,
    TrainedModel,
    ValidationReport,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Evidence:
    """All that the gate may look at. A missing piece is a refusal, not a default.

    :ivar skew: the newest judged comparison of features as served, alone in its report; a report
        without a partition when none was judged, None when nothing was ever served.
    """

    declaration: Declaration
    trained: TrainedModel
    validation: ValidationReport | None
    evaluation: Evaluation | None
    infrastructure: InfrastructureReport | None
    champion: Champion | None
    rows: pd.DataFrame | None = field(default=None, repr=False)
    skew: SkewReport | None = None

    def predictions(self, who: str) -> Array | None:
        """What ``who`` answered on the holdout, or None when it didn't answer every row."""
        import numpy as np

        values = self._answers(who)
        return values if values is not None and np.isfinite(values).all() else None

    def _answers(self, who: str) -> Array | None:
        """The columns of ``who`` as they are."""
        if self.rows is None:
            return None
        if self.declaration.task is Task.MULTICLASS and self.evaluation:
            columns = [f"{who}_{k}" for k in range(len(self.evaluation.classes))]
        else:
            columns = [who]
        if not columns or not set(columns) <= set(self.rows.columns):
            return None
        values = self.rows[columns].to_numpy(dtype=float)
        return values if self.declaration.task is Task.MULTICLASS else values[:, 0]

    @cached_property
    def over_champion(self) -> Difference | None:
        """The candidate's improvement over the champion."""
        return self._difference(self.predictions("champion"))

    @cached_property
    def over_baseline(self) -> Difference | None:
        """The candidate's improvement over the naive baseline."""
        return self._difference(self.predictions("baseline"))

    @cached_property
    def answered(self) -> Array:
        """Which holdout rows have a finite answer from production, shape (n,)."""
        import numpy as np

        found = self._answers("production")
        if found is None:
            return np.zeros(0 if self.rows is None else len(self.rows), dtype=bool)
        return np.asarray(np.isfinite(found).reshape(len(found), -1).all(axis=1))

    @cached_property
    def over_production(self) -> Difference | None:
        """The candidate's improvement over what the champion answered in production, on the rows
        that it answered there."""
        found = self._answers("production")
        return None if found is None else self._difference(found, self.answered)

    def _difference(self, other: Array | None, where: Array | None = None) -> Difference | None:
        """The candidate's improvement over ``other``, on all rows or ``where`` it is true."""
        import numpy as np

        candidate = self.predictions("candidate")
        if candidate is None or other is None or self.rows is None:
            return None
        gate = self.declaration.gate
        labels, clusters = self.rows["label"].to_numpy(), self.clusters
        if where is not None:
            if not where.any():
                return None
            labels, candidate, other = labels[where], candidate[where], other[where]
            if clusters is not None:  # counted from 0 again: an empty one must not be drawn
                clusters = np.unique(clusters[where], return_inverse=True)[1]
        return paired_difference(
            self.declaration.primary,
            self.declaration.task,
            labels if self.declaration.task is Task.REGRESSION else labels.astype(int),
            candidate,
            other,
            resamples=gate.resamples,
            confidence=gate.confidence,
            seed=self.declaration.training.seed,
            clusters=clusters,
        )

    @cached_property
    def clusters(self) -> Array | None:
        """Which rows are resampled together: those of one hour or day, by declaration."""
        import pandas as pd

        unit = self.declaration.gate.resample
        if unit == "row" or self.rows is None:
            return None
        codes: Array = pd.factorize(
            self.rows["event_timestamp"].dt.floor("h" if unit == "hour" else "D")
        )[0]
        return codes
