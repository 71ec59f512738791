"""Train: fit a candidate and track it in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.declaration.compute import SageMakerTraining
from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import TrainedModel
    from evergreen.workspace import Workspace


class TrainModelOperator(StageOperator):
    """Fit the declared estimator; one MLflow run per DAG run, found again on a retry.

    :param decision: the arbiter's decision. (templated)
    :param features: the feature set's reference. (templated)
    """

    stage = "train"
    template_fields: Sequence[str] = ("decision", "features")

    def __init__(self, *, model: Declaration, decision: Any, features: Any, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.decision = decision
        self.features = features

    def run_stage(self, workspace: Workspace, context: Context) -> TrainedModel:
        from evergreen.lifecycle.contracts import Decision, FeatureSet, Reference
        from evergreen.lifecycle.training import train

        decision = Decision.load(workspace.store, self.decision)
        feature_set = FeatureSet.load(workspace.store, self.features)
        return train(
            self.model,
            workspace,
            feature_set,
            Reference.model_validate(self.features),
            feature_set.snapshot,
            run_key=decision.run_id,
            as_of=decision.as_of,
            cause=decision.cause,
            tune=decision.tune,
            lineage=lineage_of(self.model, context),
        )


def training_operator(model: Declaration) -> type[TrainModelOperator]:
    """Who trains a model, as its declaration says; AWS is imported only where it does."""
    place = model.compute.get("train")
    if isinstance(place, SageMakerTraining):
        from evergreen.operators.remote_training import TrainOnSageMakerOperator

        return TrainOnSageMakerOperator
    return TrainModelOperator


def lineage_of(model: Declaration, context: Context) -> dict[str, str]:
    """Which run of which DAG, in which version of its bundle, from which commit."""
    from evergreen.lifecycle.modules import git_commit

    bundle = getattr(context["ti"], "bundle_instance", None)
    found = {
        "dag_id": context["dag"].dag_id,
        "dag_run": context["dag_run"].run_id,
        "bundle_version": getattr(bundle, "version", None),
        "git_commit": git_commit(model),
    }
    return {name: str(value) for name, value in found.items() if value}
