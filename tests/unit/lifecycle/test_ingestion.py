"""Ingestion: in order, exactly once, whatever lands; bad files are named and nothing else is lost."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evergreen.declaration import Declaration
from evergreen.ledger import records
from evergreen.lifecycle.contracts import IngestReport
from evergreen.lifecycle.ingestion import ingest
from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in

LATER = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def declaration(tmp_path: Path) -> Declaration:
    return declare(tmp_path)


def rows(key: str, count: int = 24, delay: timedelta = timedelta(hours=3)) -> pd.DataFrame:
    times = pd.date_range(f"{key}T00:00:00Z", periods=count, freq="h").as_unit("us")
    return pd.DataFrame(
        {
            "event_timestamp": times,
            "origin": [f"o{i}" for i in range(count)],
            "late": np.arange(count) % 2 * 1.0,
            "label_timestamp": times + delay,
            "x": np.arange(count, dtype=float),
        }
    )


def land(workspace: Workspace, key: str, frame: pd.DataFrame | bytes) -> Path:
    path = workspace.home / "landing" / f"{key}.parquet"
    path.parent.mkdir(exist_ok=True)
    if isinstance(frame, bytes):
        path.write_bytes(frame)
    else:
        frame.to_parquet(path, index=False)
    return path


def keys(report: IngestReport) -> list[str]:
    return [partition.key for partition in report.registered]


def test_what_has_landed_is_registered_in_order_once(
    workspace: Workspace, declaration: Declaration
) -> None:
    for key in ("2013-01-03", "2013-01-01", "2013-01-02"):
        land(workspace, key, rows(key))
    report = ingest(declaration, workspace, LATER)
    assert keys(report) == ["2013-01-01", "2013-01-02", "2013-01-03"]
    assert [p.sequence for p in report.registered] == [1, 2, 3]
    assert report.watermark == datetime(2013, 1, 4, tzinfo=UTC)
    again = ingest(declaration, workspace, LATER)
    assert not again.registered
    with workspace.ledger.read() as session:
        assert len(records.open_signals(session, "example")) == 3


def test_registered_rows_no_longer_depend_on_the_landing_folder(
    workspace: Workspace, declaration: Declaration
) -> None:
    path = land(workspace, "2013-01-01", rows("2013-01-01"))
    file = ingest(declaration, workspace, LATER).registered[0].files["data"]
    content = path.read_bytes()
    path.unlink()
    assert workspace.store.read_bytes(file.stored) == content


def test_a_late_partition_is_taken_and_said(workspace: Workspace, declaration: Declaration) -> None:
    land(workspace, "2013-01-03", rows("2013-01-03"))
    first = ingest(declaration, workspace, LATER)
    land(workspace, "2013-01-01", rows("2013-01-01"))
    second = ingest(declaration, workspace, LATER)
    assert (keys(second), second.late, second.missing) == (
        ["2013-01-01"],
        ("2013-01-01",),
        ("2013-01-02",),
    )
    assert second.watermark == first.watermark
    assert any("late: 2013-01-01" in line for line in second.describe())


def test_a_changed_file_is_a_new_revision_said_loudly(
    workspace: Workspace, declaration: Declaration
) -> None:
    land(workspace, "2013-01-01", rows("2013-01-01"))
    first = ingest(declaration, workspace, LATER).registered[0]
    land(workspace, "2013-01-01", rows("2013-01-01").assign(x=7.0))
    report = ingest(declaration, workspace, LATER)
    assert (report.registered[0].revision, report.registered[0].sequence) == (2, 2)
    assert any("CHANGED AFTER REGISTRATION" in line for line in report.describe())
    before = pd.read_parquet(workspace.store.path(first.files["data"].stored).path)
    assert before["x"].tolist() == rows("2013-01-01")["x"].tolist()


def test_a_touched_file_is_no_revision(workspace: Workspace, declaration: Declaration) -> None:
    path = land(workspace, "2013-01-01", rows("2013-01-01"))
    ingest(declaration, workspace, LATER)
    path.touch()
    assert not ingest(declaration, workspace, LATER).registered


def test_a_partition_that_is_not_over_waits(workspace: Workspace, declaration: Declaration) -> None:
    land(workspace, "2013-01-01", rows("2013-01-01"))
    noon = datetime(2013, 1, 1, 12, tzinfo=UTC)
    assert ingest(declaration, workspace, noon).early == ("2013-01-01",)
    assert keys(ingest(declaration, workspace, LATER)) == ["2013-01-01"]


def test_a_partition_waits_for_all_its_sources(workspace: Workspace, tmp_path: Path) -> None:
    sources = {"weather": {"uri": "weather/{partition}.parquet"}}
    declaration = declare(tmp_path, data={"sources": sources})
    land(workspace, "2013-01-01", rows("2013-01-01"))
    assert ingest(declaration, workspace, LATER).waiting == {"2013-01-01": ("weather",)}
    (tmp_path / "weather").mkdir()
    rows("2013-01-01")[["event_timestamp", "x"]].to_parquet(
        tmp_path / "weather" / "2013-01-01.parquet"
    )
    registered = ingest(declaration, workspace, LATER).registered
    assert set(registered[0].files) == {"data", "weather"}


LABEL = {
    "column": "late",
    "timestamp": "known_at",
    "uri": "landing/labels/{partition}.parquet",
    "key": ["order_id"],
}


class TestLabelsApart:
    """Labels that land in a table of their own."""

    @pytest.fixture
    def declaration(self, tmp_path: Path) -> Declaration:
        return declare(tmp_path, data={"label": LABEL})

    def orders(self, workspace: Workspace, key: str) -> None:
        frame = rows(key).rename(columns={"x": "order_id"})
        land(workspace, key, frame.drop(columns=["late", "label_timestamp"]))

    def labels(self, workspace: Workspace, key: str, **columns: object) -> Path:
        frame = rows(key).rename(columns={"x": "order_id", "event_timestamp": "known_at"})
        (workspace.home / "landing" / "labels").mkdir(parents=True, exist_ok=True)
        frame = frame[["order_id", "late", "known_at"]].assign(**columns)
        return land(workspace, f"labels/{key}", frame)

    def signals(self, workspace: Workspace) -> dict[str, datetime]:
        with workspace.ledger.read() as session:
            return {row.key: row.as_of for row in records.open_signals(session, "example")}

    def test_neither_waits_for_the_other_and_data_comes_first(
        self, workspace: Workspace, declaration: Declaration
    ) -> None:
        self.labels(workspace, "2013-01-02")
        first = ingest(declaration, workspace, LATER)
        assert [str(p) for p in first.registered] == ["labels/2013-01-02"]
        assert (first.waiting, first.watermark) == ({}, datetime(2013, 1, 3, tzinfo=UTC))
        self.orders(workspace, "2013-01-01")
        self.labels(workspace, "2013-01-03")
        self.orders(workspace, "2013-01-04")
        second = ingest(declaration, workspace, LATER)
        assert [p.name for p in second.registered] == [
            "2013-01-01",
            "2013-01-04",
            "labels/2013-01-03",
        ]
        assert (second.waiting, second.late) == ({}, ()), "late is said within one table"
        assert second.missing == ("2013-01-02", "2013-01-03")
        files = [set(p.files) for p in second.registered]
        assert files == [{"data"}, {"data"}, {"labels"}]

    def test_each_raises_a_signal_and_only_labels_mature(
        self, workspace: Workspace, declaration: Declaration
    ) -> None:
        self.orders(workspace, "2013-01-01")
        self.labels(workspace, "2013-01-01", late=[None, *[1.0] * 23])
        ingest(declaration, workspace, LATER)
        end = datetime(2013, 1, 2, tzinfo=UTC)
        assert self.signals(workspace) == {"2013-01-01/1": end, "labels/2013-01-01/1": end}
        with workspace.ledger.read() as session:
            every = records.latest_partitions(session, "example", source=None)
        assert {row.source: row.maturity for row in every} == {
            "data": {},
            "labels": {end.isoformat(): 23},
        }

    def test_a_run_asked_again_reports_its_labels_too(
        self, workspace: Workspace, declaration: Declaration
    ) -> None:
        self.orders(workspace, "2013-01-01")
        self.labels(workspace, "2013-01-01")
        once = ingest(declaration, workspace, LATER, run_id="a")
        self.labels(workspace, "2013-01-02")
        ingest(declaration, workspace, LATER, run_id="b")
        again = ingest(declaration, workspace, LATER, run_id="a")
        assert again.registered == once.registered
        assert [p.name for p in once.registered] == ["2013-01-01", "labels/2013-01-01"]

    def test_one_landed_again_is_a_revision_and_a_late_one_is_said(
        self, workspace: Workspace, declaration: Declaration
    ) -> None:
        self.labels(workspace, "2013-01-02")
        ingest(declaration, workspace, LATER)
        self.labels(workspace, "2013-01-02", late=0.0)
        self.labels(workspace, "2013-01-01")
        report = ingest(declaration, workspace, LATER)
        assert [str(p) for p in report.registered] == [
            "labels/2013-01-01",
            "labels/2013-01-02 (revision 2)",
        ]
        assert report.late == ("labels/2013-01-01",)
        assert any("REGISTRATION: labels/2013-01-02" in line for line in report.describe())

    def test_one_of_the_future_waits(self, workspace: Workspace, declaration: Declaration) -> None:
        self.labels(workspace, "2013-01-01")
        noon = datetime(2013, 1, 1, 12, tzinfo=UTC)
        assert ingest(declaration, workspace, noon).early == ("labels/2013-01-01",)
        assert not self.signals(workspace)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"known_at": pd.Timestamp("2013-01-02T00:00Z")}, "24 of 24 rows have a known_at out"),
            ({"known_at": pd.NaT}, "Cut the file by when labels became known"),
            ({"known_at": "soon"}, "not times"),
        ],
    )
    def test_a_time_of_another_partition_is_refused(
        self,
        workspace: Workspace,
        declaration: Declaration,
        columns: dict[str, object],
        message: str,
    ) -> None:
        self.orders(workspace, "2013-01-01")
        self.labels(workspace, "2013-01-01", **columns)
        report = ingest(declaration, workspace, LATER)
        assert [p.name for p in report.registered] == ["2013-01-01"]
        assert [refused.key for refused in report.refused] == ["labels/2013-01-01"]
        assert message in report.refused[0].reason

    def test_each_table_needs_the_key(self, workspace: Workspace, declaration: Declaration) -> None:
        land(workspace, "2013-01-01", rows("2013-01-01"))
        frame = pd.read_parquet(self.labels(workspace, "2013-01-01"))
        land(workspace, "labels/2013-01-01", frame.drop(columns=["order_id", "late"]))
        reasons = [refused.reason for refused in ingest(declaration, workspace, LATER).refused]
        assert "has no column order_id; found" in reasons[0]
        assert "has no column late, order_id; found known_at" in reasons[1]


BAD: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame | bytes], str]] = {
    "empty": (lambda f: b"", "not readable as Parquet"),
    "no Parquet": (lambda f: b"a,b\n1,2\n", "not readable as Parquet"),
    "no rows": (lambda f: f.iloc[:0], "holds no rows"),
    "missing column": (
        lambda f: f.drop(columns="late"),
        "has no column late; found event_timestamp",
    ),
    "outside": (
        lambda f: f.assign(event_timestamp=f["event_timestamp"] + timedelta(days=1)),
        "24 of 24 rows",
    ),
    "one in the future": (
        lambda f: f.assign(
            event_timestamp=[*f["event_timestamp"][:-1], pd.Timestamp("2113-01-01T00Z")]
        ),
        "1 of 24 rows have a event_timestamp outside their partition, first row 23: 2113",
    ),
    "null time": (
        lambda f: f.assign(event_timestamp=[pd.NaT, *f["event_timestamp"][1:]]),
        "first row 0: NaT",
    ),
    "times as numbers": (lambda f: f.assign(event_timestamp=np.arange(24)), "not times"),
    "times as words": (lambda f: f.assign(event_timestamp="yesterday"), "not times"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_named_and_the_good_ones_are_registered(
    workspace: Workspace, declaration: Declaration, case: str
) -> None:
    spoil, words = BAD[case]
    land(workspace, "2013-01-01", rows("2013-01-01"))
    bad = land(workspace, "2013-01-02", spoil(rows("2013-01-02")))
    land(workspace, "2013-01-03", rows("2013-01-03"))
    report = ingest(declaration, workspace, LATER)
    assert keys(report) == ["2013-01-01", "2013-01-03"]
    assert [refused.key for refused in report.refused] == ["2013-01-02"]
    assert str(bad) in report.refused[0].reason
    assert words in report.refused[0].reason
    land(workspace, "2013-01-02", rows("2013-01-02"))
    assert keys(ingest(declaration, workspace, LATER)) == ["2013-01-02"]


def test_a_truncated_file_is_refused(workspace: Workspace, declaration: Declaration) -> None:
    path = land(workspace, "2013-01-01", rows("2013-01-01"))
    path.write_bytes(path.read_bytes()[:-100])
    report = ingest(declaration, workspace, LATER)
    assert str(path) in report.refused[0].reason
    assert not report.registered


def test_naive_times_get_the_declared_zone(workspace: Workspace, tmp_path: Path) -> None:
    declaration = declare(tmp_path, data={"timezone": "America/New_York"})
    frame = rows("2013-01-01", count=10)
    local = frame.assign(
        **{
            c: frame[c].dt.tz_convert("America/New_York").dt.tz_localize(None)
            for c in ("event_timestamp", "label_timestamp")
        }
    )
    land(workspace, "2013-01-01", local)
    assert keys(ingest(declaration, workspace, LATER)) == ["2013-01-01"]
    assert ingest(declare(tmp_path, name="other"), workspace, LATER).refused


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.permutations(range(5)), cuts=st.sets(st.integers(1, 4)))
def test_any_order_of_arrival_registers_each_once(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], cuts: set[int]
) -> None:
    """However five files arrive and however often is looked, each is registered once."""
    folder = tmp_path_factory.mktemp("any")
    workspace, declaration = workspace_in(folder), declare(folder)
    found: list[str] = []
    for place, day in enumerate(order):
        key = f"2013-01-0{day + 1}"
        land(workspace, key, rows(key))
        if place in cuts:
            found += keys(ingest(declaration, workspace, LATER))
    found += keys(ingest(declaration, workspace, LATER))
    assert sorted(found) == [f"2013-01-0{day}" for day in range(1, 6)]
