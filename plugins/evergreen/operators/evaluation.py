"""Evaluate: candidate, champion and naive baseline on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import Evaluation
    from evergreen.workspace import Workspace


class EvaluateModelOperator(StageOperator):
    """Score candidate, champion and baseline anew on the holdout; slices, calibration, importance.

    :param trained: the trained model's reference. (templated)
    :param features: the feature set's reference. (templated)
    """

    stage = "evaluate"
    template_fields: Sequence[str] = ("trained", "features")

    def __init__(self, *, model: Declaration, trained: Any, features: Any, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.trained = trained
        self.features = features

    def run_stage(self, workspace: Workspace, context: Context) -> Evaluation:
        from evergreen.ledger import records
        from evergreen.lifecycle.contracts import FeatureSet, TrainedModel
        from evergreen.lifecycle.evaluation import evaluate

        feature_set = FeatureSet.load(workspace.store, self.features)
        with workspace.ledger.read() as session:
            live = records.champion(session, self.model.name)
        return evaluate(
            self.model,
            workspace,
            TrainedModel.load(workspace.store, self.trained),
            feature_set,
            champion=(live.version, live.model_uri) if live else None,
            as_of=feature_set.as_of,
        )
