"""Blocked data fails its task, and what was found can still be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from airflow.sdk.exceptions import AirflowFailException

from evergreen.lifecycle.contracts import Check, ValidationReport
from evergreen.operators.base import REFUSED
from evergreen.operators.validation import ValidateDataOperator
from tests.builders import declare, snapshot_of, store_frame, workspace_in

REFERENCE = {"kind": "validation", "uri": "file:///x", "digest": "d"}


class Pushed(dict[str, Any]):
    """A task instance that keeps what is handed over."""

    def xcom_push(self, key: str, value: Any) -> None:
        self[key] = value


def test_blocked_data_s_report_is_handed_over_before_the_task_fails(tmp_path: Path) -> None:
    declaration, workspace = declare(tmp_path), workspace_in(tmp_path)
    day = store_frame(workspace, pd.DataFrame({"x": [1.0]}), key="2024-01-01")
    check = Check(
        name="data: required columns", partition=day.key, severity="block", passed=False,
        observed="x is missing", bound="x",
    )  # fmt: skip
    report = ValidationReport(model="example", snapshot="s", blocked=(day.key,), checks=(check,))
    task = ValidateDataOperator(
        task_id="validate_data", model=declaration,
        snapshot=snapshot_of(day).save(workspace.store).to_dict(),
    )  # fmt: skip
    pushed = Pushed()
    context: Any = {"ti": pushed}
    with pytest.raises(AirflowFailException, match="x is missing, allowed x"):
        task.finish(workspace, context, report, REFERENCE)
    assert pushed["return_value"] == REFERENCE
    assert "x is missing" in pushed[REFUSED]
