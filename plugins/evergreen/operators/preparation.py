"""Prepare: raw partitions to feature tables to a point-in-time joined set; the newest go online."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from evergreen.declaration import Declaration
from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import FeatureSet
    from evergreen.lifecycle.contracts.serving import Materialized
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


class MaterializeFeaturesOperator(StageOperator):
    """Put a feature set's newest features online, for replicas to look up.

    A repeat, or an older set, never moves a row of the online store back. It is skipped for a
    model that no replica serves.

    :param features: the feature set's reference. (templated)
    """

    stage = "prepare"
    template_fields: Sequence[str] = ("features",)

    def __init__(self, *, model: Declaration, features: Any, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.features = features

    def run_stage(self, workspace: Workspace, context: Context) -> Materialized:
        from evergreen.lifecycle.contracts import FeatureSet
        from evergreen.lifecycle.contracts.serving import Materialized
        from evergreen.lifecycle.features import materialize

        if not self.model.serving.replicas:
            raise AirflowSkipException("no server is declared: nobody looks features up")
        feature_set = FeatureSet.load(workspace.store, self.features)
        if not feature_set.parts:
            raise AirflowSkipException("the feature set is empty: all of its data is blocked")
        views = materialize(self.model, workspace, feature_set)
        return Materialized(model=self.model.name, views=views)
