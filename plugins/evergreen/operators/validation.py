"""Validate data: Great Expectations suite and schema diff; block, warn or quarantine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from evergreen.declaration import Declaration
from evergreen.operators.base import REFUSED, StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import ValidationReport
    from evergreen.workspace import Workspace


class ValidateDataOperator(StageOperator):
    """Check a snapshot's partitions. Blocked data fails the task, without retries.

    A snapshot for scoring only fails when all of it is blocked: a bad partition doesn't keep
    the others from being scored.

    :param snapshot: the snapshot's reference. (templated)
    """

    stage = "validate_data"
    template_fields: Sequence[str] = ("snapshot",)

    def __init__(self, *, model: Declaration, snapshot: Any, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.snapshot = snapshot

    def run_stage(self, workspace: Workspace, context: Context) -> ValidationReport:
        from evergreen.ledger import records
        from evergreen.lifecycle.contracts import Champion, Snapshot
        from evergreen.lifecycle.validation import validate

        with workspace.ledger.read() as session:
            live = records.champion(session, self.model.name)
        before = Snapshot.load(workspace.store, Champion.from_row(live).snapshot) if live else None
        return validate(
            self.model, workspace, Snapshot.load(workspace.store, self.snapshot), before
        )

    def finish(
        self, workspace: Workspace, context: Context, result: Any, reference: dict[str, Any]
    ) -> None:
        from evergreen.lifecycle.contracts import Snapshot

        snapshot = Snapshot.load(workspace.store, self.snapshot)
        remaining = [p for p in snapshot.partitions if p.key not in result.blocked]
        usable = snapshot.purpose == "score" and bool(remaining)
        if result.blocked and not usable:
            reason = f"data is blocked: {', '.join(result.blocked)}; " + "; ".join(
                f"{c.partition}: {c.name}: {c.observed}, allowed {c.bound}"
                for c in result.checks
                if not c.passed and c.severity == "block"
            )
            context["ti"].xcom_push(key=REFUSED, value=reason)
            # A task that fails returns nothing, and the report is what a person wants to see now.
            context["ti"].xcom_push(key="return_value", value=reference)
            raise AirflowFailException(reason)
