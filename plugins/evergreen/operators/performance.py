"""Measure performance: estimated from the answers, realised on matured labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import PerformanceReport
    from evergreen.workspace import Workspace


class MeasurePerformanceOperator(StageOperator):
    """How versions did in each window that is new or of which more labels are known.

    :param labels: the label report's reference. (templated)
    """

    stage = "monitor"
    template_fields: Sequence[str] = ("labels",)

    def __init__(self, *, model: Declaration, labels: Any, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.labels = labels

    def run_stage(self, workspace: Workspace, context: Context) -> PerformanceReport:
        from evergreen.lifecycle.contracts import LabelReport
        from evergreen.lifecycle.monitoring import detector_states
        from evergreen.lifecycle.performance import measure_performance

        labels = LabelReport.load(workspace.store, self.labels)
        states = detector_states(self.model, workspace, labels)
        return measure_performance(self.model, workspace, labels, states)
