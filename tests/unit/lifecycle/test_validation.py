"""Each rule finds the bad data it is for, says where, and does what its severity promises."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError
from evergreen.lifecycle import validation
from evergreen.lifecycle.contracts import Check, Partition, ValidationReport
from evergreen.lifecycle.validation import validate
from evergreen.workspace import Workspace
from tests.builders import declare, snapshot_of, store_frame, store_labels, workspace_in

ROWS = 100
WEATHER = {"weather": {"uri": "landing/weather/{partition}.parquet"}}
Change = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_in(tmp_path)


@pytest.fixture
def declaration(tmp_path: Path) -> Declaration:
    return declare(tmp_path)


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


def test_good_data_passes_every_check(declaration: Declaration, workspace: Workspace) -> None:
    report = of(declaration, workspace, flights())
    assert not failed(report)
    assert (report.blocked, report.quarantined, report.report) == ((), {}, None)
    assert "verdict: usable" in list(report.describe())


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


class TestSchema:
    def days(self, workspace: Workspace, *frames: pd.DataFrame, **kwargs: Any) -> list[Partition]:
        keys = ["2013-01-01", "2013-01-02", "2013-01-03"]
        return [
            store_frame(workspace, frame, key=key, sequence=i, **kwargs)
            for i, (key, frame) in enumerate(zip(keys, frames, strict=False), start=1)
        ]

    @pytest.mark.parametrize(
        ("change", "severity", "line"),
        [
            (lambda f: f.drop(columns="distance"), "block", "distance: missing, was double"),
            (lambda f: f.assign(gate="A1"), "warn", "gate: string, was missing"),
            (lambda f: f.astype({"distance": str}), "block", "distance: string, was double"),
            (lambda f: f.astype({"distance": "int64"}), "block", "distance: int64, was double"),
            (lambda f: f.astype({"distance": "float32"}), "warn", "distance: float, was double"),
            (lambda f: f.assign(flight=0.5), "warn", "flight: double, was int64"),
            (lambda f: f.assign(dest=None), "warn", "dest: null, was string"),
            (lambda f: f.assign(dest=np.nan), "warn", "dest: double, was string"),
        ],
    )
    def test_each_change_has_its_severity(
        self, declaration, workspace, change: Change, severity: str, line: str
    ):
        first = flights().assign(flight=1, dest="BOS")
        second = change(flights("2013-01-02").assign(flight=1, dest="BOS"))
        snapshot = snapshot_of(*self.days(workspace, first, second))
        report = validate(declaration, workspace, snapshot)
        assert report.schema_changes == (f"2013-01-02: data: column {line}",)
        assert report.blocked == (("2013-01-02",) if severity == "block" else ())

    def test_the_champion_is_compared_with_when_there_is_one(self, declaration, workspace):
        old = snapshot_of(*self.days(workspace, flights(gate="A1")))
        partition = store_frame(workspace, flights("2013-02-01"), key="2013-02-01")
        report = validate(declaration, workspace, snapshot_of(partition), old)
        assert report.schema_changes == ("2013-02-01: data: column gate: missing, was string",)
        assert report.blocked == ("2013-02-01",)

    def test_a_csv_without_gaps_may_read_as_whole_numbers(self, declaration, workspace):
        whole = np.arange(ROWS)
        frames = (flights(count=whole + 0.5), flights("2013-01-02", count=whole))
        snapshot = snapshot_of(*self.days(workspace, *frames, ending="csv"))
        report = validate(declaration, workspace, snapshot)
        assert report.schema_changes == ("2013-01-02: data: column count: int64, was double",)
        assert not report.blocked


class TestSuite:
    @pytest.mark.parametrize(
        ("on_failure", "blocked", "aside"),
        [
            (None, True, False),
            ("block", True, False),
            ("warn", False, False),
            ("quarantine", False, True),
        ],
    )
    def test_severity_decides(self, declaration, workspace, on_failure, blocked, aside):
        meta = {"on_failure": on_failure} if on_failure else {}
        declaration = suite(declaration, between("distance", 0, 5000, **meta))
        report = of(declaration, workspace, with_values("distance", [9], -1.0))
        name = "expect_column_values_to_be_between(distance)"
        check = only_failure(report, f"data: {name}")
        assert check.observed == "1 of 100 rows (1.00 %), such as -1"
        assert check.bound == "min_value 0, max_value 5000, at most 0 % of rows otherwise"
        assert bool(report.blocked) is blocked
        assert (set_aside(workspace, report) if aside else {}) == ({9: name} if aside else {})

    def test_quarantine_reaches_rows_that_mostly_tolerates(self, declaration, workspace):
        entry = between("distance", 0, 5000, on_failure="quarantine")
        entry["kwargs"]["mostly"] = 0.9
        report = of(suite(declaration, entry), workspace, with_values("distance", [9], -1.0))
        assert not failed(report)
        assert list(set_aside(workspace, report)) == [9]

    def test_quarantine_of_a_pair_of_columns(self, declaration, workspace):
        kwargs = {"column_A": "label_timestamp", "column_B": "event_timestamp"}
        declaration = suite(
            declaration,
            {
                "type": "expect_column_pair_values_a_to_be_greater_than_b",
                "kwargs": kwargs,
                "meta": {"on_failure": "quarantine"},
            },
        )
        frame = flights()
        frame.loc[2, "label_timestamp"] = pd.Timestamp("2012-12-31", tz="UTC")
        assert list(set_aside(workspace, of(declaration, workspace, frame))) == [2]

    def test_quarantine_of_a_whole_column_blocks(self, declaration, workspace):
        kwargs = {"column": "distance", "min_value": 9000, "max_value": 9999}
        entry = {"type": "expect_column_mean_to_be_between", "kwargs": kwargs}
        declaration = suite(declaration, entry | {"meta": {"on_failure": "quarantine"}})
        report = of(declaration, workspace, flights())
        check = only_failure(report, "data: expect_column_mean_to_be_between(distance)")
        assert check.observed == "1,300; no rows to set aside, so this blocks"
        assert report.blocked == ("2013-01-01",)

    @pytest.mark.parametrize(("on_failure", "blocked"), [("quarantine", True), ("warn", False)])
    def test_an_exception_is_a_failure_with_its_message(
        self, declaration, workspace, on_failure, blocked
    ):
        declaration = suite(declaration, between("height", 0, 1, on_failure=on_failure))
        report = of(declaration, workspace, flights())
        check = only_failure(report, "data: expect_column_values_to_be_between(height)")
        assert 'could not be checked: Error: The column "height"' in check.observed
        assert bool(report.blocked) is blocked

    def test_an_exception_that_gx_lets_through_is_one_too(
        self, declaration, workspace, monkeypatch
    ):
        from great_expectations.expectations.core import ExpectColumnValuesToBeBetween as Between

        def broken(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("no metric for this")

        monkeypatch.setattr(Between, "get_validation_dependencies", broken)
        report = of(suite(declaration, between("distance", 0, 9)), workspace, flights())
        (check,) = failed(report)
        assert check.observed == "could not be checked: RuntimeError: no metric for this"

    def test_a_source_has_expectations_of_its_own(self, tmp_path, workspace):
        declaration = suite(
            declare(tmp_path, data={"sources": WEATHER}),
            between("temp", 0, 40, source="weather", on_failure="quarantine"),
        )
        partition = store_frame(
            workspace, flights(), key="2013-01-01", sources={"weather": weather()}
        )
        report = validate(declaration, workspace, snapshot_of(partition))
        check = only_failure(report, "weather: expect_column_values_to_be_between(temp)")
        assert check.observed.startswith("24 of 24 rows (100.00 %), such as 50; this source's")
        assert report.blocked == ("2013-01-01",)
        assert not report.quarantined

    def test_nothing_is_printed(self, declaration, workspace, capfd):
        of(suite(declaration, between("distance", 0, 5000)), workspace, flights())
        assert capfd.readouterr() == ("", "")


class TestSuiteFile:
    def refusal(self, declaration: Declaration, workspace: Workspace) -> str:
        with pytest.raises(DeclarationError) as caught:
            of(declaration, workspace, flights())
        return str(caught.value)

    def test_missing(self, tmp_path, workspace):
        declaration = declare(tmp_path, validation={"suite": "nowhere.json"})
        assert "nowhere.json: no such file" in self.refusal(declaration, workspace)

    @pytest.mark.parametrize(
        ("text", "message"),
        [("{", "suite.json: not JSON"), ("[]", "suite.json: found no list of expectations")],
    )
    def test_no_suite(self, tmp_path, workspace, text, message):
        (tmp_path / "suite.json").write_text(text)
        declaration = declare(tmp_path, validation={"suite": "suite.json"})
        assert message in self.refusal(declaration, workspace)

    @pytest.mark.parametrize(
        ("entry", "found", "allowed"),
        [
            ({"type": "expect_wonders"}, "'expect_wonders'", "expect_column_max_to_be_between"),
            (between("distance", 0, 1, on_failure="shrug"), "'shrug'", "block, warn, quarantine"),
            (between("distance", 0, 1, source="tides"), "'tides'", "data"),
            (between("distance", 0, 1) | {"on_failure": "warn"}, "'on_failure'", "type, kwargs"),
            ("be good", "'be good'", "an object with type and kwargs"),
            ({"type": "expect_column_to_exist", "kwargs": []}, "no objects", "objects"),
            ({"type": "expect_column_to_exist", "kwargs": {"colum": "a"}}, "colum", "documents"),
        ],
    )
    def test_each_wrong_entry_is_named(self, declaration, workspace, entry, found, allowed):
        declaration = suite(declaration, between("distance", 0, 5000), entry)
        message = self.refusal(declaration, workspace)
        assert "expectations.json: expectation 2: " in message
        assert found in message.partition("; allowed: ")[0]
        assert allowed in message.partition("; allowed: ")[2]


class TestCache:
    def test_a_rerun_examines_nothing_and_says_the_same(self, declaration, workspace, monkeypatch):
        declaration = suite(declaration, between("distance", 0, 5000, on_failure="quarantine"))
        snapshot = snapshot_of(
            store_frame(workspace, with_values("distance", [9], -1.0), key="2013-01-01")
        )
        first = validate(declaration, workspace, snapshot)
        monkeypatch.setattr(validation, "_examine", None)
        assert validate(declaration, workspace, snapshot) == first

    def test_a_recomputation_says_the_same(self, declaration, workspace):
        declaration = suite(declaration, between("distance", 0, 5000, on_failure="quarantine"))
        frame = with_values("distance", [9], -1.0)
        first = of(declaration, workspace, frame)
        rmtree(workspace.home / "store" / "documents")
        assert of(declaration, workspace, frame) == first

    def test_only_the_new_partition_is_examined(self, declaration, workspace, monkeypatch):
        old = store_frame(workspace, flights(), key="2013-01-01")
        new = store_frame(workspace, flights("2013-01-02"), key="2013-01-02")
        validate(declaration, workspace, snapshot_of(old))
        seen, examine = [], validation._examine
        monkeypatch.setattr(
            validation, "_examine", lambda *a, **k: seen.append(a[3].key) or examine(*a, **k)
        )
        validate(declaration, workspace, snapshot_of(old, new))
        assert seen == ["2013-01-02"]

    def test_another_suite_is_another_result(self, declaration, workspace):
        frame = with_values("distance", [9], -1.0)
        assert not of(suite(declaration, between("distance", -5, 5000)), workspace, frame).blocked
        assert of(suite(declaration, between("distance", 0, 5000)), workspace, frame).blocked

    def test_context_keeps_its_quarantine(self, declaration, workspace):
        context = store_frame(workspace, with_values("origin", [3], None), key="2013-01-01")
        window = store_frame(workspace, flights("2013-01-02"), key="2013-01-02")
        report = validate(declaration, workspace, snapshot_of(window, context=(context,)))
        assert list(report.quarantined) == [context.digest]
        assert not report.schema_changes


def test_the_page_of_the_newest_partition_is_kept(declaration, workspace):
    declaration = suite(declaration, between("distance", 0, 5000))
    report = of(declaration, workspace, flights())
    assert report.report is not None
    assert report.report.endswith("/index.html")
    index = workspace.store.read_bytes(report.report).decode()
    folder = report.report.removesuffix("index.html")
    for page in ("expectations/data.html", "validations/data/2013-01-01/1/index.html"):
        assert f'href="{page}"' in index
        assert "distance" in workspace.store.read_bytes(folder + page).decode()


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


APART = {
    "column": "late",
    "timestamp": "known_at",
    "uri": "landing/labels/{partition}.parquet",
    "key": ["order_id"],
}


def orders(day: str = "2013-01-01", **columns: Any) -> pd.DataFrame:
    frame = flights(day).drop(columns=["late", "label_timestamp"])
    return frame.assign(order_id=[str(n) for n in range(ROWS)]).assign(**columns)


def outcomes(day: str = "2013-01-01", **columns: Any) -> pd.DataFrame:
    """A label file: what became known of each order on a day."""
    frame = flights(day)[["late", "label_timestamp"]].rename(
        columns={"label_timestamp": "known_at"}
    )
    return frame.assign(order_id=[str(n) for n in range(ROWS)]).assign(**columns)
