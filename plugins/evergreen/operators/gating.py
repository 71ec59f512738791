"""Gate: evidence in, one verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import Verdict
    from evergreen.workspace import Workspace


class GateOperator(StageOperator):
    """Judge the candidate; what follows is skipped unless the verdict promotes.

    :param decision: the arbiter's decision. (templated)
    :param trained: the trained model's reference. (templated)
    :param validation: the validation report's reference. (templated)
    :param evaluation: the evaluation's reference. (templated)
    :param infrastructure: the infrastructure report's reference. (templated)
    """

    stage = "gate"
    template_fields: Sequence[str] = (
        "decision",
        "trained",
        "validation",
        "evaluation",
        "infrastructure",
    )

    def __init__(
        self,
        *,
        model: Declaration,
        decision: Any,
        trained: Any,
        validation: Any,
        evaluation: Any,
        infrastructure: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, **kwargs)
        self.decision = decision
        self.trained = trained
        self.validation = validation
        self.evaluation = evaluation
        self.infrastructure = infrastructure

    def run_stage(self, workspace: Workspace, context: Context) -> Verdict:
        from evergreen.lifecycle import contracts
        from evergreen.lifecycle.gating import gate

        store = workspace.store
        return gate(
            self.model,
            workspace,
            contracts.Decision.load(store, self.decision),
            contracts.TrainedModel.load(store, self.trained),
            contracts.ValidationReport.load(store, self.validation),
            contracts.Evaluation.load(store, self.evaluation),
            contracts.InfrastructureReport.load(store, self.infrastructure),
        )

    def finish(
        self, workspace: Workspace, context: Context, result: Any, reference: dict[str, Any]
    ) -> None:
        if not result.promotes:
            self.skip_rest(context, reference)
