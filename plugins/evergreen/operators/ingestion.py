"""Ingest: register the partitions that have arrived."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from evergreen.operators.base import StageOperator, moment

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import IngestReport
    from evergreen.workspace import Workspace


class IngestPartitionsOperator(StageOperator):
    """Register what has landed since the last look, in order, exactly once.

    Emits its outlets' asset events only when something was registered; otherwise the task is
    skipped. What was refused fails the task unless something else was registered: then the good
    partitions go on, and the next sweep fails.
    """

    stage = "ingest"

    def run_stage(self, workspace: Workspace, context: Context) -> IngestReport:
        from evergreen.lifecycle.ingestion import ingest

        as_of = moment(context["params"].get("as_of")) or context["dag_run"].run_after
        return ingest(self.model, workspace, as_of, context["dag_run"].run_id)

    def finish(
        self, workspace: Workspace, context: Context, result: Any, reference: dict[str, Any]
    ) -> None:
        refused = "; ".join(each.reason for each in result.refused)
        if refused and not result.registered:
            raise AirflowFailException(refused)
        if refused:  # a failed task has no event, and good partitions must not wait for bad ones
            self.log.error("registered what could be; the next sweep fails for: %s", refused)
        if not result.registered:
            raise AirflowSkipException("nothing new has landed")
