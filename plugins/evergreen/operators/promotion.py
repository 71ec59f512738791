"""Promote: put the judged candidate live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.notifications import ModelNotifier
from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import Promotion
    from evergreen.workspace import Workspace


class PromoteModelOperator(StageOperator):
    """Compare-and-set in the ledger, alias in the registry, online features.

    :param decision: the arbiter's decision. (templated)
    :param verdict: the verdict's reference. (templated)
    :param trained: the trained model's reference. (templated)
    :param snapshot: the snapshot's reference. (templated)
    :param features: the feature set's reference. (templated)
    :param evaluation: the evaluation's reference. (templated)
    """

    stage = "promote"
    template_fields: Sequence[str] = (
        "decision",
        "verdict",
        "trained",
        "snapshot",
        "features",
        "evaluation",
    )

    def __init__(
        self,
        *,
        model: Declaration,
        decision: Any,
        verdict: Any,
        trained: Any,
        snapshot: Any,
        features: Any,
        evaluation: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, **kwargs)
        self.decision = decision
        self.verdict = verdict
        self.trained = trained
        self.snapshot = snapshot
        self.features = features
        self.evaluation = evaluation

    def run_stage(self, workspace: Workspace, context: Context) -> Promotion:
        from evergreen.lifecycle import contracts
        from evergreen.lifecycle.promotion import promote
        from evergreen.lifecycle.training import refit

        store = workspace.store
        decision = contracts.Decision.load(store, self.decision)
        verdict = contracts.Verdict.load(store, self.verdict)
        trained = contracts.TrainedModel.load(store, self.trained)
        feature_set = contracts.FeatureSet.load(store, self.features)
        if self.model.training.refit and verdict.promotes:
            trained = refit(
                self.model,
                workspace,
                feature_set,
                trained,
                run_key=decision.run_id,
                as_of=decision.as_of,
            )
        return promote(
            self.model,
            workspace,
            decision,
            verdict,
            trained,
            contracts.Reference.model_validate(self.snapshot),
            feature_set,
            contracts.Reference.model_validate(self.evaluation),
        )

    def finish(
        self, workspace: Workspace, context: Context, result: Any, reference: dict[str, Any]
    ) -> None:
        ModelNotifier(
            model=self.model,
            event="promoted",
            title=f"version {result.version} is live",
            body="\n".join(result.describe()),
        ).notify(context)
