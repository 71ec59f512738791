"""Each rule finds the bad data it is for, says where, and does what its severity promises."""

from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import pytest

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError
from evergreen.lifecycle import expectations, validation
from evergreen.lifecycle.contracts import Partition
from evergreen.lifecycle.expectations import compile_templates
from evergreen.lifecycle.validation import validate
from evergreen.workspace import Workspace
from tests.builders import declare, snapshot_of, store_frame
from tests.validated import (
    ROWS,
    WEATHER,
    between,
    failed,
    flights,
    of,
    only_failure,
    set_aside,
    suite,
    weather,
    with_values,
)

Change = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture
def declaration(tmp_path: Path) -> Declaration:
    return declare(tmp_path)


def test_good_data_passes_every_check(declaration: Declaration, workspace: Workspace) -> None:
    report = of(declaration, workspace, flights())
    assert not failed(report)
    assert (report.blocked, report.quarantined, report.report) == ((), {}, None)
    assert "verdict: usable" in list(report.describe())


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


def test_with_templates_compiled_no_page_compiles_any(declaration, workspace, monkeypatch):
    """As in a task that is forked from a warm worker."""
    expectations._view.cache_clear()
    compile_templates()
    monkeypatch.setattr(jinja2.Environment, "compile", None)  # whoever compiles now fails
    declaration = suite(declaration, between("distance", 0, 10), between("absent", 0, 1))
    assert of(declaration, workspace, flights()).report is not None
