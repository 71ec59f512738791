"""Detect drift: compare new predictions with what their version learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from evergreen.declaration import Declaration
from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

    from evergreen.lifecycle.contracts import DriftReport
    from evergreen.workspace import Workspace


class DriftReportLink(BaseOperatorLink):
    """A button on the task: Evidently's page of the newest window, where the store keeps it."""

    name = "Drift report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The page's URI; empty when nothing was measured."""
        return str(getattr(operator, "page", ""))


class DetectDriftOperator(StageOperator):
    """Inputs and predictions of each new window against its version's training window.

    :param labels: the label report's reference. (templated)
    """

    stage = "monitor"
    template_fields: Sequence[str] = ("labels",)
    operator_extra_links = (DriftReportLink(),)

    def __init__(self, *, model: Declaration, labels: Any, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.labels = labels
        self.page = ""

    def run_stage(self, workspace: Workspace, context: Context) -> DriftReport:
        from evergreen.lifecycle.contracts import LabelReport
        from evergreen.lifecycle.drift import detect_drift

        return detect_drift(self.model, workspace, LabelReport.load(workspace.store, self.labels))

    def finish(
        self, workspace: Workspace, context: Context, result: Any, reference: dict[str, Any]
    ) -> None:
        pages = [window.report for window in result.windows if window.report]
        self.page = pages[-1] if pages else ""
