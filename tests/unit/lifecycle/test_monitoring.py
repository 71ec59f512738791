"""Labels beside predictions: what is to be measured, once, whenever and however labels come."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evergreen.ledger import records
from evergreen.lifecycle.contracts import LabelReport, MonitorReport
from evergreen.lifecycle.drift import detect_drift
from evergreen.lifecycle.monitoring import detector_states, join_labels, raise_signals
from evergreen.lifecycle.performance import measure_performance
from evergreen.lifecycle.watched import known_labels, read_window
from evergreen.rehearsal import Rehearsal
from tests.lifelike import Life

WATCHING: dict[str, Any] = {
    "monitoring": {"min_rows": 50, "drift": {"sample": 500}},
    "triggers": {"new_data": {"min_rows": 1}, "performance": {}, "drift": {}},
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Version 1 has learned from two days; the third is landed and scored. Not to be changed."""
    life = Life.begin(tmp_path_factory.mktemp("begun"), **WATCHING)
    life.land(1)
    life.land(2)
    assert life.retrain("first").promotes
    life.land(3)
    life.score()
    return life


@pytest.fixture
def life(begun: Life, tmp_path: Path) -> Life:
    """The same, to go on with; what is in the store may be read and added to by all."""
    import shutil

    from tests.builders import workspace_in

    folder = tmp_path / "copy"
    shutil.copytree(begun.workspace.home, folder)
    return Life(begun.declaration, workspace_in(folder))


def joined(life: Life, **options: Any) -> LabelReport:
    report = join_labels(life.declaration, life.workspace, **options)
    assert report is not None
    return report


def watch(life: Life) -> MonitorReport | None:
    return Rehearsal(life.declaration, life.workspace).watch()


def test_nothing_registered_is_nothing_to_watch(tmp_path: Path) -> None:
    life = Life.begin(tmp_path, **WATCHING)
    assert join_labels(life.declaration, life.workspace) is None


def test_a_scored_day_is_a_window_with_the_labels_known_by_then(life: Life) -> None:
    report = joined(life)
    (window,), (part,) = report.windows, report.partitions
    assert (window.key, window.version, window.fresh, window.learned) == (
        "2013-01-03", "1", True, True,
    )  # fmt: skip
    assert (part.rows, part.matured, part.pending, part.before) == (200, 200, 0, None)
    assert report.origins["1"].evaluation.kind == "evaluation"
    rows = read_window(life.workspace.store, report, window)
    assert len(rows) == 200
    assert rows["label"].notna().all()
    assert rows["row_id"].is_unique


def test_labels_are_those_known_at_the_moment(life: Life) -> None:
    """Half a day in, half of the labels are not known; the answers all are."""
    report = joined(life)
    noon = report.windows[0].start + timedelta(hours=6)
    (part,) = report.partitions
    labels = known_labels(life.workspace.store.get_table(part.labels), noon)
    assert 0 < len(labels) < 200
    assert (labels["label_timestamp"] <= noon).all()


def test_what_was_measured_is_not_measured_again(life: Life) -> None:
    assert watch(life) is not None
    assert joined(life).windows == ()
    assert watch(life) is None


def test_a_repeat_before_the_end_finds_the_same(life: Life) -> None:
    first, second = joined(life), joined(life)
    assert first == second
    assert first.save(life.workspace.store) == second.save(life.workspace.store)


def test_a_corrected_file_is_measured_again_and_counted_once(life: Life) -> None:
    watch(life)
    with life.workspace.ledger.read() as session:
        before = records.measurements(session, "example", "performance")
    life.land(3, slope=-2.0)  # the same day landed again, its labels the other way round
    life.score()
    report = joined(life)
    assert [window.key for window in report.windows] == ["2013-01-03"]
    assert report.partitions[0].revision == 2
    watch(life)
    with life.workspace.ledger.read() as session:
        after = records.measurements(session, "example", "performance")
    assert len(before) == len(after) == 1
    assert after[0].evidence["matured"] == 200
    metric = "log_loss"
    assert (
        after[0].evidence["realised"][metric]["value"]
        > before[0].evidence["realised"][metric]["value"]
    )


def test_a_revision_that_has_no_answers_yet_is_not_looked_at(life: Life) -> None:
    """Its rows may stand in other places of the file: a label would find another row's answer."""
    watch(life)
    life.land(3, slope=-2.0)
    assert joined(life).windows == ()
    life.score()
    assert joined(life).partitions[0].before is None


def test_an_older_run_that_is_cleared_writes_nothing(life: Life) -> None:
    old = joined(life)
    drift = detect_drift(life.declaration, life.workspace, old)
    states = detector_states(life.declaration, life.workspace, old)
    performance = measure_performance(life.declaration, life.workspace, old, states)
    life.land(4)
    life.score()
    watch(life)
    before = state(life)
    report = raise_signals(life.declaration, life.workspace, old, drift, performance)
    assert (report.measured, report.signals) == (0, ())
    assert state(life) == before


def test_a_cleared_measurement_feeds_its_errors_once(life: Life) -> None:
    report = joined(life)
    watch(life)
    assert detector_states(life.declaration, life.workspace, report) == {}
    life.land(4)
    life.score()
    assert detector_states(life.declaration, life.workspace, joined(life))["1"].rows == 200


def test_labels_that_never_come_are_no_violation(life: Life) -> None:
    life.land(4, late=float("nan"))
    life.score()
    watch(life)
    with life.workspace.ledger.read() as session:
        rows = records.measurements(session, "example", "performance")
    last = next(row for row in rows if row.window == "2013-01-04")
    assert (last.evidence["matured"], last.violates) == (0, [])
    assert last.evidence["realised"] == {}


def test_days_at_once_end_in_the_state_of_days_one_by_one(life: Life, tmp_path: Path) -> None:
    """A backfill finds what live monitoring had found."""
    import shutil

    from tests.builders import workspace_in

    shutil.copytree(life.workspace.home, tmp_path / "other")
    other = Life(life.declaration, workspace_in(tmp_path / "other"))
    slopes = {4: 2.0, 5: -2.0, 6: -2.0}
    for day, slope in slopes.items():
        life.land(day, slope=slope)
        life.score()
        watch(life)
    for day, slope in slopes.items():
        other.land(day, slope=slope)
    other.score()
    watch(other)
    assert state(life) == state(other)
    assert any(violates for _, _, violates, _ in state(life)[0])


def state(life: Life) -> tuple[list[Any], list[str]]:
    """The latest measurement of each window and the open signals, without when they were made."""
    with life.workspace.ledger.read() as session:
        rows = records.measurements(session, "example")
        signals = sorted(
            f"{s.cause} {s.key}"
            for s in records.open_signals(session, "example")
            if s.cause in {"performance", "drift"}
        )
    drift = [
        (row.window, row.kind, row.violates, row.evidence.get("share"))
        for row in rows
        if row.kind != "concept"
    ]
    return drift, signals


def test_a_window_holds_the_newest_partitions_of_one_version(tmp_path: Path) -> None:
    life = Life.begin(tmp_path, **{**WATCHING, "monitoring": {"window": 3, "min_rows": 50}})
    life.land(1)
    life.land(2)
    assert life.retrain("first").promotes
    for day in (3, 4, 5, 6):
        life.land(day)
    life.score()
    assert [window.partitions for window in joined(life).windows] == [
        ("2013-01-03",),
        ("2013-01-03", "2013-01-04"),
        ("2013-01-03", "2013-01-04", "2013-01-05"),
        ("2013-01-04", "2013-01-05", "2013-01-06"),
    ]


def test_the_latest_known_label_wins() -> None:
    hours = [pd.Timestamp("2013-01-01", tz="UTC") + pd.Timedelta(hours=h) for h in (1, 3, 2)]
    labels = pd.DataFrame(
        {"row_id": [7, 7, 8], "label": [0.0, 1.0, None], "label_timestamp": hours}
    )
    assert known_labels(labels, hours[2])["label"].tolist() == [0.0]
    assert known_labels(labels, hours[1])["label"].tolist() == [1.0]
