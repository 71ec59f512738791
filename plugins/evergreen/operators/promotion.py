"""Promote: put the judged candidate live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import ConflictError, RollbackError, ServingError
from evergreen.notifications import ModelNotifier
from evergreen.operators.base import StageOperator, escalations, promotions

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import Promotion, Rollback
    from evergreen.workspace import Workspace


class PromoteModelOperator(StageOperator):
    """Compare-and-set in the ledger, alias in the registry, online features, replicas.

    A version that a replica refuses is rolled back at once; ``<model>.bake`` starts after others.

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
        kwargs.setdefault("outlets", [promotions(model), escalations(model)])
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
        self._refuse_again(workspace, decision.run_id)
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
        try:
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
        except ServingError as error:
            told = self._take_back(workspace, decision.run_id, str(error))
            raise ServingError(f"{error} {told}") from error

    def _refuse_again(self, workspace: Workspace, run_id: str) -> None:
        """A try that comes after its version was taken back only carries that out."""
        from evergreen.ledger import records
        from evergreen.lifecycle.rollback import roll_back

        with workspace.ledger.read() as session:
            back = records.promotion_of(session, self.model.name, f"promote/{run_id}")
        if back is not None:
            done = roll_back(self.model, workspace, run_id=back.run_id, reason=back.reason)
            raise ServingError(f"{back.reason} {_taken_back(done)}")

    def _take_back(self, workspace: Workspace, run_id: str, problem: str) -> str:
        """A version that can't be served is no champion: roll it back, and say so."""
        from evergreen.ledger import records
        from evergreen.lifecycle.rollback import roll_back

        with workspace.ledger.read() as session:
            made = records.promotion_of(session, self.model.name, run_id)
        try:
            done = roll_back(
                self.model,
                workspace,
                run_id=f"promote/{run_id}",
                reason=problem,
                position=made.position if made else None,
            )
        except (RollbackError, ConflictError) as error:
            return f"It could not be rolled back: {error}"
        return _taken_back(done)

    def finish(
        self, workspace: Workspace, context: Context, result: Any, reference: dict[str, Any]
    ) -> None:
        ModelNotifier(
            model=self.model,
            event="promoted",
            title=f"version {result.version} is live",
            body="\n".join(result.describe()),
        ).notify(context)


def _taken_back(done: Rollback) -> str:
    return f"Rolled back: version {done.version} is live again, {done.replaced} is quarantined."
