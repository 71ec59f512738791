"""Score: the champion answers for whole partitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import ScoreReport
    from evergreen.workspace import Workspace


class ScoreBatchOperator(StageOperator):
    """Score a snapshot's partitions and write the prediction log; a repeat replaces it.

    :param snapshot: the snapshot's reference. (templated)
    :param features: the feature set's reference. (templated)
    """

    stage = "score"
    template_fields: Sequence[str] = ("snapshot", "features")

    def __init__(self, *, model: Declaration, snapshot: Any, features: Any, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.snapshot = snapshot
        self.features = features

    def run_stage(self, workspace: Workspace, context: Context) -> ScoreReport:
        from evergreen.lifecycle.contracts import FeatureSet, Snapshot
        from evergreen.lifecycle.scoring import score

        return score(
            self.model,
            workspace,
            Snapshot.load(workspace.store, self.snapshot),
            FeatureSet.load(workspace.store, self.features),
            run_id=context["dag_run"].run_id,
        )
