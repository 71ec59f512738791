"""A day's rows, good but for what a test changes, and what validation says of them."""

import json
from typing import Any

import numpy as np
import pandas as pd

from evergreen.declaration import Declaration
from evergreen.lifecycle.contracts import Check, ValidationReport
from evergreen.lifecycle.validation import validate
from evergreen.workspace import Workspace
from tests.builders import declare, snapshot_of, store_frame

ROWS = 100


WEATHER = {"weather": {"uri": "landing/weather/{partition}.parquet"}}


def flights(day: str = "2013-01-01", **columns: Any) -> pd.DataFrame:
    """A day's good rows: a departure a minute, every fourth one late, every label known in an hour."""
    times = pd.date_range(f"{day}T06:00Z", periods=ROWS, freq="min", unit="us")
    frame = pd.DataFrame(
        {
            "event_timestamp": times,
            "origin": np.resize(["EWR", "JFK", "LGA"], ROWS),
            "distance": np.linspace(100.0, 2500.0, ROWS),
            "late": (np.arange(ROWS) % 4 == 0).astype(float),
            "label_timestamp": times + pd.Timedelta(hours=1),
        }
    )
    return frame.assign(**columns)


def weather(day: str = "2013-01-01", **columns: Any) -> pd.DataFrame:
    times = pd.date_range(f"{day}T00:00Z", periods=24, freq="h", unit="us")
    return pd.DataFrame({"event_timestamp": times, "temp": 50.0}).assign(**columns)


def with_values(column: str, rows: list[int], value: Any) -> pd.DataFrame:
    frame = flights()
    frame.loc[rows, column] = value
    return frame


def suite(declaration: Declaration, *entries: dict[str, Any], **validation: Any) -> Declaration:
    """The declaration with a suite file of these entries."""
    file = declaration.folder / "expectations.json"
    file.write_text(json.dumps({"name": "example", "expectations": list(entries)}))
    section = {"suite": file.name, **validation}
    data = {"sources": WEATHER} if declaration.data.sources else {}
    return declare(declaration.folder, data=data | _data(declaration), validation=section)


def _data(declaration: Declaration) -> dict[str, Any]:
    return {"entities": list(declaration.data.entities), "partition": "day"} | {
        "uri": declaration.data.uri,
        "label": {"column": "late", "timestamp": "label_timestamp"},
    }


def between(column: str, low: float, high: float, **meta: str) -> dict[str, Any]:
    kwargs = {"column": column, "min_value": low, "max_value": high}
    return {"type": "expect_column_values_to_be_between", "kwargs": kwargs, "meta": meta}


def of(
    declaration: Declaration, workspace: Workspace, frame: pd.DataFrame, **snapshot: Any
) -> ValidationReport:
    """The report on a snapshot of one partition."""
    return validate(
        declaration,
        workspace,
        snapshot_of(store_frame(workspace, frame, key="2013-01-01"), **snapshot),
    )


def failed(report: ValidationReport) -> list[Check]:
    return [check for check in report.checks if not check.passed]


def only_failure(report: ValidationReport, name: str) -> Check:
    check = next(check for check in failed(report) if check.name == name)
    assert {c.name for c in failed(report)} <= {name, "quarantined share"}, failed(report)
    return check


def set_aside(workspace: Workspace, report: ValidationReport) -> dict[int, str]:
    """Row id → reason of the only partition's quarantined rows."""
    (uri,) = report.quarantined.values()
    table = workspace.store.get_table(uri)
    return dict(zip(table["row_id"], table["reason"], strict=True))
