"""What the gate may look at: a run's results, the champion's, and their answers to the holdout."""

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
    TrainedModel,
    ValidationReport,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Evidence:
    """All that the gate may look at. A missing piece is a refusal, not a default."""

    declaration: Declaration
    trained: TrainedModel
    validation: ValidationReport | None
    evaluation: Evaluation | None
    infrastructure: InfrastructureReport | None
    champion: Champion | None
    rows: pd.DataFrame | None = field(default=None, repr=False)

    def predictions(self, who: str) -> Array | None:
        """What ``who`` answered on the holdout, or None when it didn't answer every row."""
        import numpy as np

        if self.rows is None:
            return None
        if self.declaration.task is Task.MULTICLASS and self.evaluation:
            columns = [f"{who}_{k}" for k in range(len(self.evaluation.classes))]
        else:
            columns = [who]
        if not columns or not set(columns) <= set(self.rows.columns):
            return None
        values = self.rows[columns].to_numpy(dtype=float)
        values = values if self.declaration.task is Task.MULTICLASS else values[:, 0]
        return values if np.isfinite(values).all() else None

    @cached_property
    def over_champion(self) -> Difference | None:
        """The candidate's improvement over the champion."""
        return self._difference("champion")

    @cached_property
    def over_baseline(self) -> Difference | None:
        """The candidate's improvement over the naive baseline."""
        return self._difference("baseline")

    def _difference(self, who: str) -> Difference | None:
        candidate, other = self.predictions("candidate"), self.predictions(who)
        if candidate is None or other is None or self.rows is None:
            return None
        gate = self.declaration.gate
        labels = self.rows["label"].to_numpy()
        return paired_difference(
            self.declaration.primary,
            self.declaration.task,
            labels if self.declaration.task is Task.REGRESSION else labels.astype(int),
            candidate,
            other,
            resamples=gate.resamples,
            confidence=gate.confidence,
            seed=self.declaration.training.seed,
            clusters=self.clusters,
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
