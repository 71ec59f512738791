"""Labels that can't teach block training, wherever they land."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError
from evergreen.lifecycle.validation import validate
from tests.builders import declare, snapshot_of, store_frame, store_labels
from tests.validated import ROWS, between, failed, flights, of, only_failure, suite, with_values

APART = {
    "column": "late",
    "timestamp": "known_at",
    "uri": "landing/labels/{partition}.parquet",
    "key": ["order_id"],
}


@pytest.fixture
def declaration(tmp_path: Path) -> Declaration:
    return declare(tmp_path)


def orders(day: str = "2013-01-01", **columns: Any) -> pd.DataFrame:
    frame = flights(day).drop(columns=["late", "label_timestamp"])
    return frame.assign(order_id=[str(n) for n in range(ROWS)]).assign(**columns)


def outcomes(day: str = "2013-01-01", **columns: Any) -> pd.DataFrame:
    """A label file: what became known of each order on a day."""
    frame = flights(day)[["late", "label_timestamp"]].rename(
        columns={"label_timestamp": "known_at"}
    )
    return frame.assign(order_id=[str(n) for n in range(ROWS)]).assign(**columns)


class TestLabels:
    def test_one_class_blocks_and_is_named(self, declaration, workspace):
        report = of(declaration, workspace, flights(late=0.0))
        check = only_failure(report, "classes of late")
        assert (check.observed, check.bound) == ("1: 0", "exactly 2")
        assert report.blocked == ("snapshot",)

    def test_three_classes_are_too_many_for_a_binary_model(self, declaration, workspace):
        report = of(declaration, workspace, with_values("late", [1], 2.0))
        assert only_failure(report, "classes of late").observed == "3: 0, 1, 2"

    def test_a_class_counts_once_it_is_known(self, declaration, workspace):
        frame = flights()
        frame.loc[frame["late"].eq(1), "label_timestamp"] += pd.Timedelta(days=30)
        report = of(declaration, workspace, frame, as_of=datetime(2013, 1, 2, tzinfo=UTC))
        assert only_failure(report, "classes of late").observed == "1: 0"
        assert not failed(of(declaration, workspace, frame))

    def test_a_quarantined_row_lends_no_class(self, declaration, workspace):
        frame = flights(late=0.0)
        frame.loc[4, ["late", "distance"]] = [1.0, np.inf]
        report = of(declaration, workspace, frame)
        assert {c.name for c in failed(report)} == {"classes of late", "data: no infinite values"}

    def test_nothing_matured_blocks(self, declaration, workspace):
        report = of(declaration, workspace, flights(), immature=90, never=10)
        check = only_failure(report, "matured rows")
        assert check.observed == "0 (90 not yet, 10 never labelled)"
        assert report.blocked == ("snapshot",)

    def test_scoring_needs_no_labels(self, declaration, workspace):
        declaration = suite(declaration, between("late", 0, 1))
        empty = pd.Series(pd.NaT, index=range(ROWS), dtype="datetime64[us, UTC]")
        frame = flights(late=np.nan, label_timestamp=empty)
        report = of(declaration, workspace, frame, purpose="score", immature=ROWS)
        assert not failed(report)
        assert not [check for check in report.checks if "late" in check.name]


class TestLabelsApart:
    """Labels that land in a table of their own."""

    @pytest.fixture
    def declaration(self, tmp_path):
        return declare(tmp_path, data={"label": APART})

    def report(self, declaration, workspace, rows, *labels, **snapshot):
        day = store_frame(workspace, rows, key="2013-01-01")
        files = tuple(
            store_labels(workspace, frame, key=f"2013-01-0{n}")
            for n, frame in enumerate(labels, start=1)
        )
        return validate(declaration, workspace, snapshot_of(day, labels=files, **snapshot))

    def test_good_data_passes_every_check(self, declaration, workspace):
        report = self.report(declaration, workspace, orders(), outcomes())
        assert not failed(report)
        names = {check.name for check in report.checks}
        assert {"labels: required columns", "labels: labels finite", "classes of late"} <= names
        assert "data: label keys unique" in names

    def test_a_doubled_key_blocks_training_and_is_said_of_predictions(self, declaration, workspace):
        twice = orders(order_id=["a", "a", *range(2, ROWS)]).astype({"order_id": str})
        report = self.report(declaration, workspace, twice, outcomes())
        check = only_failure(report, "data: label keys unique")
        assert check.observed == "2 of 100 rows (2.00 %), such as {'order_id': 'a'}"
        assert report.blocked == ("2013-01-01",)
        scored = self.report(declaration, workspace, twice, purpose="score")
        assert only_failure(scored, "data: label keys unique").severity == "warn"
        assert not scored.blocked

    def test_a_doubled_row_that_is_set_aside_does_not_count(self, declaration, workspace):
        rows = pd.concat([orders(), orders().iloc[:1]], ignore_index=True)
        report = self.report(declaration, workspace, rows, outcomes())
        only_failure(report, "data: no repeated rows")
        assert (report.blocked, report.quarantined_rows) == ((), 1)

    def test_a_key_in_two_partitions_blocks_the_whole(self, declaration, workspace):
        days = [
            store_frame(workspace, orders(day), key=day) for day in ("2013-01-01", "2013-01-02")
        ]
        file = store_labels(workspace, outcomes("2013-01-02").iloc[:3], key="2013-01-02")
        report = validate(declaration, workspace, snapshot_of(*days, labels=(file,)))
        check = next(c for c in failed(report) if c.name == "label keys unique")
        assert check.observed == "3 of 3 labels are of rows in several partitions"
        assert "snapshot" in report.blocked

    def test_a_row_without_a_key_is_said(self, declaration, workspace):
        rows = orders()
        rows.loc[3, "order_id"] = None
        report = self.report(declaration, workspace, rows, outcomes())
        assert only_failure(report, "data: label keys not null").severity == "warn"

    @pytest.mark.parametrize("purpose", ["train", "score"])
    def test_a_label_among_the_data_too_blocks(self, declaration, workspace, purpose):
        report = self.report(declaration, workspace, orders(late=1.0), outcomes(), purpose=purpose)
        assert only_failure(report, "data: no label among the data").observed == "late"
        assert report.blocked == ("2013-01-01",)

    def test_their_time_may_have_the_name_of_the_rows(self, workspace, tmp_path):
        label = {**APART, "timestamp": "event_timestamp"}
        declaration = declare(tmp_path, data={"label": label})
        named = outcomes().rename(columns={"known_at": "event_timestamp"})
        assert not failed(self.report(declaration, workspace, orders(), named))
        without = orders().drop(columns="event_timestamp")
        report = self.report(declaration, workspace, without, purpose="score")
        assert only_failure(report, "data: required columns").observed.endswith("event_timestamp")

    def test_classes_are_those_known_and_not_corrected_since(self, declaration, workspace):
        first = outcomes(late=[0.0] * (ROWS - 1) + [1.0])
        as_of = datetime(2013, 1, 2, tzinfo=UTC)
        assert not failed(self.report(declaration, workspace, orders(), first, as_of=as_of))
        mended = outcomes("2013-01-02").iloc[-1:].assign(late=0.0)
        later = self.report(declaration, workspace, orders(), first, mended)
        assert only_failure(later, "classes of late").observed == "1: 0"
        then = self.report(declaration, workspace, orders(), first, mended, as_of=as_of)
        assert not failed(then), "what is known later changes nothing"
        none = datetime(2013, 1, 1, tzinfo=UTC)
        early = self.report(declaration, workspace, orders(), first, as_of=none)
        assert only_failure(early, "classes of late").observed == "0: none"

    def test_classes_of_rows_set_aside_do_not_count(self, declaration, workspace):
        rows = pd.concat([orders(), orders().iloc[:1]], ignore_index=True)
        late = [0.0] * ROWS
        report = self.report(declaration, workspace, rows, outcomes(late=late))
        assert next(c for c in failed(report) if c.name == "classes of late").observed == "1: 0"

    @pytest.mark.parametrize(
        ("columns", "name"),
        [
            ({"late": [np.inf, *[0.0, 1.0] * 49, 0.0]}, "labels: labels finite"),
            ({"late": None}, "labels: required columns hold values"),
        ],
    )
    def test_labels_that_teach_nothing_block_and_name_their_file(
        self, declaration, workspace, columns, name
    ):
        report = self.report(declaration, workspace, orders(), outcomes(**columns))
        check = next(c for c in failed(report) if c.name == name)
        assert check.partition == "labels/2013-01-01"
        assert "labels/2013-01-01" in report.blocked

    def test_the_suite_looks_at_label_files_when_it_says_so(self, declaration, workspace):
        entries = [between("late", 0, 1, source="labels", on_failure="quarantine")]
        file = declaration.folder / "expectations.json"
        file.write_text(json.dumps({"name": "example", "expectations": entries}))
        checked = declare(
            declaration.folder, data={"label": APART}, validation={"suite": file.name}
        )
        bad = outcomes(late=[2.0, *[0.0, 1.0] * 49, 0.0])
        report = self.report(checked, workspace, orders(), bad)
        check = next(c for c in failed(report) if c.name.startswith("labels: expect_column"))
        assert (check.partition, check.severity) == ("labels/2013-01-01", "block")
        assert "can't be set aside" in check.observed
        assert workspace.store.exists(str(report.report))
        assert not failed(self.report(checked, workspace, orders(), bad, purpose="score"))
        entries[0]["meta"] = {}
        file.write_text(json.dumps({"name": "example", "expectations": entries}))
        with pytest.raises(DeclarationError, match=r'expectation 1: .*"source": "labels"'):
            self.report(checked, workspace, orders(), bad)
