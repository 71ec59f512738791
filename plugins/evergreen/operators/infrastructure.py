"""Check infrastructure: how the logged model behaves in a clean process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import InfrastructureReport
    from evergreen.workspace import Workspace


class CheckInfrastructureOperator(StageOperator):
    """Load the logged model as a server would: signature, latency, memory, same predictions.

    :param trained: the trained model's reference. (templated)
    :param features: the feature set's reference. (templated)
    """

    stage = "check_infrastructure"
    template_fields: Sequence[str] = ("trained", "features")

    def __init__(self, *, model: Declaration, trained: Any, features: Any, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.trained = trained
        self.features = features

    def run_stage(self, workspace: Workspace, context: Context) -> InfrastructureReport:
        from evergreen.lifecycle.contracts import FeatureSet, TrainedModel
        from evergreen.lifecycle.infrastructure import check_infrastructure

        trained = TrainedModel.load(workspace.store, self.trained)
        return check_infrastructure(
            self.model, workspace, trained, FeatureSet.load(workspace.store, self.features)
        )
