"""Monitor: put labels beside predictions, and make signals of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from evergreen.declaration import Declaration
from evergreen.operators.base import StageOperator, ask_a_person, escalations

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import LabelReport, MonitorReport
    from evergreen.workspace import Workspace


class JoinLabelsOperator(StageOperator):
    """Find what was learned of the prediction log since the last look; skip when it is nothing."""

    stage = "monitor"

    def run_stage(self, workspace: Workspace, context: Context) -> LabelReport:
        from evergreen.lifecycle.monitoring import join_labels

        report = join_labels(self.model, workspace)
        if report is None or not report.windows:
            raise AirflowSkipException("nothing to watch: no new predictions and no new labels")
        return report


class RaiseSignalsOperator(StageOperator):
    """Write down what was measured, and raise a signal for each cause that a window violates.

    :param labels: the label report's reference. (templated)
    :param drift: the drift report's reference. (templated)
    :param performance: the performance report's reference. (templated)
    """

    stage = "monitor"
    template_fields: Sequence[str] = ("labels", "drift", "performance")

    def __init__(
        self, *, model: Declaration, labels: Any, drift: Any, performance: Any, **kwargs: Any
    ) -> None:
        kwargs.setdefault("outlets", [escalations(model)])
        super().__init__(model=model, **kwargs)
        self.labels = labels
        self.drift = drift
        self.performance = performance

    def run_stage(self, workspace: Workspace, context: Context) -> MonitorReport:
        from evergreen.lifecycle.contracts import DriftReport, LabelReport, PerformanceReport
        from evergreen.lifecycle.monitoring import raise_signals

        store = workspace.store
        return raise_signals(
            self.model,
            workspace,
            LabelReport.load(store, self.labels),
            DriftReport.load(store, self.drift),
            PerformanceReport.load(store, self.performance),
        )

    def finish(
        self, workspace: Workspace, context: Context, result: Any, reference: dict[str, Any]
    ) -> None:
        if result.opened:
            ask_a_person(context, self.model)
