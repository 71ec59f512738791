"""Detect skew: compare features as served with the point-in-time join offline."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from airflow.sdk.exceptions import AirflowSkipException

from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import SkewReport
    from evergreen.workspace import Workspace


class DetectSkewOperator(StageOperator):
    """Features as served in partitions that have landed since, beside the join offline.

    What differs too often becomes a signal, and the gate doesn't promote until it is gone. It is
    skipped when there is nothing to compare that wasn't compared before.
    """

    stage = "monitor"

    def run_stage(self, workspace: Workspace, context: Context) -> SkewReport:
        from evergreen.ledger import records
        from evergreen.lifecycle.contracts import Champion, Snapshot
        from evergreen.lifecycle.skew import detect_skew, record_skew
        from evergreen.lifecycle.validation import validate

        with workspace.ledger.read() as session:
            live = records.champion(session, self.model.name)
        before = Snapshot.load(workspace.store, Champion.from_row(live).snapshot) if live else None
        check = partial(validate, self.model, workspace, champion_snapshot=before)
        report = detect_skew(self.model, workspace, check=check)
        if not report.partitions:
            raise AirflowSkipException(
                "nothing to compare: nothing was served in time that has landed since the last look"
            )
        record_skew(self.model, workspace, report)
        return report
