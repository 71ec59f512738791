"""Compact: what replicas answered becomes part of the prediction log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import Compaction
    from evergreen.workspace import Workspace


class CompactLogOperator(StageOperator):
    """Turn pieces of replicas' prediction logs that have been shipped into Parquet, once each."""

    stage = "monitor"

    def run_stage(self, workspace: Workspace, context: Context) -> Compaction:
        from evergreen.lifecycle.compaction import compact

        return compact(self.model, workspace)
