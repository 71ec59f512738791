"""Detect drift: compare new predictions with what their version learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import DriftReport
    from evergreen.workspace import Workspace


class DetectDriftOperator(StageOperator):
    """Inputs and predictions of each new window against its version's training window.

    :param labels: the label report's reference. (templated)
    """

    stage = "monitor"
    template_fields: Sequence[str] = ("labels",)

    def __init__(self, *, model: Declaration, labels: Any, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.labels = labels

    def run_stage(self, workspace: Workspace, context: Context) -> DriftReport:
        from evergreen.lifecycle.contracts import LabelReport
        from evergreen.lifecycle.drift import detect_drift

        return detect_drift(self.model, workspace, LabelReport.load(workspace.store, self.labels))
