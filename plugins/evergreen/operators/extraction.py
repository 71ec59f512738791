"""Extract: freeze a window of partitions into an immutable snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk.exceptions import AirflowSkipException

from evergreen.declaration import Declaration
from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import Snapshot
    from evergreen.workspace import Workspace


class ExtractSnapshotOperator(StageOperator):
    """Freeze the training window, or the partitions that wait for predictions.

    :param purpose: ``train`` takes the decision's window, ``score`` what has no predictions yet.
    :param decision: the arbiter's decision; for ``train``. (templated)
    """

    stage = "extract"
    template_fields: Sequence[str] = ("decision",)

    def __init__(
        self,
        *,
        model: Declaration,
        purpose: Literal["train", "score"] = "train",
        decision: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, **kwargs)
        self.purpose = purpose
        self.decision = decision

    def run_stage(self, workspace: Workspace, context: Context) -> Snapshot:
        from evergreen.lifecycle.contracts import Decision
        from evergreen.lifecycle.definition_reading import lookback
        from evergreen.lifecycle.extraction import extract, extract_unscored

        reach = lookback(self.model)
        if self.purpose == "train":
            decision = Decision.load(workspace.store, self.decision)
            return extract(
                self.model,
                workspace,
                as_of=decision.as_of,
                sequence=decision.sequence,
                lookback=reach,
            )
        keys = context["params"].get("partitions") or ()
        snapshot = extract_unscored(self.model, workspace, lookback=reach, keys=keys)
        if snapshot is None:
            raise AirflowSkipException(
                "nothing to score: every partition that began under a champion has predictions"
            )
        return snapshot
