"""Prepare: raw partitions to feature tables to a point-in-time joined feature set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import FeatureSet
    from evergreen.workspace import Workspace


class BuildFeaturesOperator(StageOperator):
    """Build what is missing of a snapshot's features, and join them point in time.

    :param snapshot: the snapshot's reference. (templated)
    :param validation: the validation report's reference. (templated)
    """

    stage = "prepare"
    template_fields: Sequence[str] = ("snapshot", "validation")

    def __init__(
        self, *, model: Declaration, snapshot: Any, validation: Any, **kwargs: Any
    ) -> None:
        super().__init__(model=model, **kwargs)
        self.snapshot = snapshot
        self.validation = validation

    def run_stage(self, workspace: Workspace, context: Context) -> FeatureSet:
        from evergreen.lifecycle.contracts import Snapshot, ValidationReport
        from evergreen.lifecycle.preparation import prepare

        snapshot = Snapshot.load(workspace.store, self.snapshot)
        report = ValidationReport.load(workspace.store, self.validation)
        return prepare(self.model, workspace, snapshot, report)
