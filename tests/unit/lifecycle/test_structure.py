"""What rows must be, whatever is declared: columns, types, keys, times; each breach is found and named."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evergreen.declaration import Declaration
from evergreen.lifecycle.validation import validate
from tests.builders import declare, snapshot_of, store_frame
from tests.validated import (
    ROWS,
    WEATHER,
    failed,
    flights,
    of,
    only_failure,
    set_aside,
    weather,
    with_values,
)


@pytest.fixture
def declaration(tmp_path: Path) -> Declaration:
    return declare(tmp_path)


class TestStructure:
    def test_a_missing_required_column_blocks(self, declaration, workspace):
        report = of(declaration, workspace, flights().drop(columns="label_timestamp"))
        check = next(c for c in failed(report) if c.name == "data: required columns")
        assert check.observed == "missing: label_timestamp"
        assert "2013-01-01" in report.blocked

    def test_a_missing_time_of_a_source_blocks(self, tmp_path, workspace):
        partition = store_frame(
            workspace,
            flights(),
            key="2013-01-01",
            sources={"weather": weather().drop(columns="event_timestamp")},
        )
        report = validate(
            declare(tmp_path, data={"sources": WEATHER}), workspace, snapshot_of(partition)
        )
        assert only_failure(report, "weather: required columns").observed.endswith(
            "event_timestamp"
        )
        assert report.blocked == ("2013-01-01",)

    def test_a_missing_source_blocks(self, tmp_path, workspace):
        declaration = declare(tmp_path, data={"sources": WEATHER})
        report = of(declaration, workspace, flights())
        assert only_failure(report, "weather: file").observed == "none"
        assert report.blocked == ("2013-01-01",)

    def test_values_that_are_not_times_block_and_name_the_column(self, declaration, workspace):
        report = of(declaration, workspace, flights(event_timestamp="soon"))
        check = next(c for c in failed(report) if c.name == "data: file")
        assert "data/2013-01-01.parquet: column event_timestamp" in check.observed
        assert report.blocked == ("2013-01-01", "snapshot")

    def test_an_all_null_label_blocks(self, declaration, workspace):
        report = of(declaration, workspace, flights(late=np.nan), never=ROWS)
        found = {check.name: check.observed for check in failed(report)}
        assert found == {
            "data: required columns hold values": "all null: late",
            "matured rows": "0 (0 not yet, 100 never labelled)",
            "classes of late": "0: none",
        }
        assert report.blocked == ("2013-01-01", "snapshot")

    def test_another_all_null_column_warns(self, declaration, workspace):
        report = of(declaration, workspace, flights(gust=np.nan))
        check = only_failure(report, "data: other columns hold values")
        assert (check.severity, check.observed) == ("warn", "all null: gust")
        assert not report.blocked

    def test_a_null_entity_is_set_aside(self, declaration, workspace):
        report = of(declaration, workspace, with_values("origin", [3], None))
        check = only_failure(report, "data: keys not null")
        assert (check.observed, check.bound) == ("1 of 100 rows (1.00 %): origin", "0 rows")
        assert set_aside(workspace, report) == {3: "keys not null"}
        assert (report.quarantined_rows, report.blocked) == (1, ())

    def test_a_repeated_row_is_set_aside_but_the_first(self, declaration, workspace):
        frame = flights()
        frame = pd.concat([frame, frame.iloc[[7]]], ignore_index=True)
        report = of(declaration, workspace, frame)
        only_failure(report, "data: no repeated rows")
        assert set_aside(workspace, report) == {ROWS: "no repeated rows"}

    def test_a_key_with_other_values_is_a_check_of_its_own(self, declaration, workspace):
        frame = flights()
        frame = pd.concat([frame, frame.iloc[[7]].assign(distance=1.0)], ignore_index=True)
        report = of(declaration, workspace, frame)
        assert "same origin, event_timestamp" in only_failure(report, "data: keys unique").observed
        assert set_aside(workspace, report) == {ROWS: "keys unique"}

    def test_infinite_values_are_set_aside(self, declaration, workspace):
        report = of(declaration, workspace, with_values("distance", [5], np.inf))
        assert "distance" in only_failure(report, "data: no infinite values").observed
        assert set_aside(workspace, report) == {5: "no infinite values"}

    def test_infinite_values_of_a_source_block(self, tmp_path, workspace):
        declaration = declare(tmp_path, data={"sources": WEATHER})
        sources = {"weather": weather(temp=np.inf)}
        partition = store_frame(workspace, flights(), key="2013-01-01", sources=sources)
        report = validate(declaration, workspace, snapshot_of(partition))
        check = only_failure(report, "weather: no infinite values")
        assert "can't be set aside, so this blocks" in check.observed
        assert report.blocked == ("2013-01-01",)
        assert not report.quarantined

    def test_an_infinite_label_blocks(self, tmp_path, workspace):
        declaration = declare(tmp_path, task="regression", evaluation={"primary": "r2"})
        report = of(declaration, workspace, with_values("late", [5], -np.inf))
        check = only_failure(report, "data: labels finite")
        assert check.observed == "late: 1 of 100 rows (1.00 %) infinite"
        assert report.blocked == ("2013-01-01",)

    def test_text_is_no_label_of_a_regression(self, tmp_path, workspace):
        declaration = declare(tmp_path, task="regression", evaluation={"primary": "r2"})
        report = of(declaration, workspace, flights(late="very"))
        assert only_failure(report, "data: labels finite").observed == "late holds object"

    def test_too_many_quarantined_rows_block(self, tmp_path, workspace):
        declaration = declare(tmp_path, validation={"quarantine_at_most": 0.02})
        report = of(declaration, workspace, with_values("origin", [1, 2, 3], None))
        check = next(c for c in failed(report) if c.name == "quarantined share")
        assert (check.observed, check.bound) == ("3 of 100 rows (3.00 %)", "at most 2 %")
        assert report.blocked == ("2013-01-01",)

    def test_a_row_with_two_faults_counts_once(self, declaration, workspace):
        frame = with_values("origin", [3], None)
        frame.loc[3, "distance"] = np.inf
        report = of(declaration, workspace, frame)
        assert set_aside(workspace, report) == {3: "keys not null; no infinite values"}
        assert report.quarantined_rows == 1
