"""A version is judged when enough labels are known, and found bad only when that is sure."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss, roc_auc_score

from evergreen.declaration import Declaration
from evergreen.lifecycle.contracts import (
    DetectorState,
    LabelReport,
    LabelsKnown,
    PerformanceReport,
    WindowPerformance,
)
from evergreen.lifecycle.monitoring import join_labels
from evergreen.lifecycle.performance import measure_performance
from tests.builders import declare
from tests.lifelike import SMALL, Life

METRICS = ["roc_auc", "accuracy", "brier_score", "f1_macro"]
EVALUATION = {"primary": "log_loss", "metrics": METRICS, "slices": ["kind"], "min_slice_rows": 60}
STABLE = ("2013-01-03", "2013-01-04", "2013-01-05")
BROKEN, FLAT = "2013-01-06", "2013-01-07"


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Two days to learn from, three like them, one turned round, one that says nothing."""
    life = Life.begin(tmp_path_factory.mktemp("life"), evaluation=EVALUATION)
    life.land(1)
    life.land(2)
    assert life.retrain("run 1").promotes
    for day in (3, 4, 5):
        life.land(day)
    life.land(6, slope=-2.0)
    life.land(7, x=np.zeros(200))
    life.score()
    return life


@pytest.fixture(scope="module")
def report(life: Life) -> LabelReport:
    found = join_labels(life.declaration, life.workspace)
    assert found is not None
    return found


def with_sections(life: Life, **sections: Any) -> Declaration:
    """The model declared otherwise; its versions stay."""
    return declare(life.declaration.folder, **{**SMALL, "evaluation": EVALUATION, **sections})


def with_labels(
    life: Life, report: LabelReport, change: Callable[[pd.DataFrame], pd.DataFrame], *keys: str
) -> LabelReport:
    """The report of only these windows, with other labels."""
    store, parts = life.workspace.store, []
    for part in report.partitions:
        if part.partition in keys:
            name = f"tables/labels/changed-{part.partition}-{abs(hash(change))}.parquet"
            labels = store.put_table(name, change(store.get_table(part.labels)))
            parts.append(part.model_copy(update={"labels": labels}))
    windows = tuple(window for window in report.windows if window.key in keys)
    return report.model_copy(update={"partitions": tuple(parts), "windows": windows})


def only(life: Life, report: LabelReport, *keys: str) -> LabelReport:
    return with_labels(life, report, lambda labels: labels, *keys)


def hide(share: float) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """That share of the labels becomes known only years later."""

    def change(labels: pd.DataFrame) -> pd.DataFrame:
        late = labels["row_id"] < share * len(labels)
        later = pd.Timestamp("2029-01-01", tz="UTC").as_unit("us")
        return labels.assign(label_timestamp=labels["label_timestamp"].mask(late, later))

    return change


def measured(
    life: Life, report: LabelReport, declaration: Declaration | None = None
) -> dict[str, WindowPerformance]:
    found = measure_performance(declaration or life.declaration, life.workspace, report, {})
    return {window.window: window for window in found.windows}


def rows_of(life: Life, report: LabelReport, key: str) -> tuple[pd.DataFrame, np.ndarray]:
    """A partition's log and labels, read by hand."""
    part = next(part for part in report.partitions if part.partition == key)
    log, labels = pd.read_parquet(part.predictions), pd.read_parquet(part.labels)
    joined = log.merge(labels, on="row_id")
    return joined, joined["label"].to_numpy().astype(int)


def test_realised_is_scikit_learns(life: Life, report: LabelReport) -> None:
    found = measured(life, report)["2013-01-04"]
    rows, labels = rows_of(life, report, "2013-01-04")
    said = rows["prediction"].to_numpy()
    assert {name: value.value for name, value in found.realised.items()} == pytest.approx(
        {
            "log_loss": log_loss(labels, said),
            "roc_auc": roc_auc_score(labels, said),
            "accuracy": accuracy_score(labels, said >= 0.5),
            "brier_score": brier_score_loss(labels, said),
            "f1_macro": f1_score(labels, said >= 0.5, average="macro"),
        }
    )
    assert set(found.estimated) == set(found.realised) == set(found.reference)
    assert (found.rows, found.matured, found.unseen) == (200, 200, 0)
    assert found.naive["roc_auc"] == 0.5
    assert found.naive["log_loss"] == pytest.approx(np.log(2), abs=0.05)
    assert set(found.calibration) == set(found.calibration_reference)


def test_days_like_the_holdout_do_not_violate(life: Life, report: LabelReport) -> None:
    found = measured(life, report)
    for key in STABLE:
        assert found[key].basis == "realised"
        assert "performance" not in found[key].violates
        assert found[key].skipped is None


@pytest.mark.parametrize("metric", ["log_loss", "roc_auc", "accuracy"])
def test_a_broken_day_does_whichever_way_the_metric_runs(
    life: Life, report: LabelReport, metric: str
) -> None:
    declaration = with_sections(life, monitoring={"performance": {"metric": metric}})
    found = measured(life, only(life, report, "2013-01-04", BROKEN), declaration)
    good, bad = found["2013-01-04"], found[BROKEN]
    assert good.violates == ()
    assert "performance" in bad.violates
    assert bad.metric == metric
    worse, naive = bad.because
    assert f"realised {metric} {bad.realised[metric].value:.4f} (95% interval" in worse
    assert f"10% worse than {bad.reference[metric]:.4f} at promotion" in worse
    assert ("below" if metric != "log_loss" else "above") in worse
    assert "no better than a naive model (prior)" in naive
    assert bad.bound == pytest.approx(
        bad.reference[metric] * (0.9 if metric != "log_loss" else 1.1)
    )


def test_worse_but_not_surely_so(life: Life, report: LabelReport) -> None:
    """The value is beyond the bound; its interval isn't."""
    key = "2013-01-05"
    value = measured(life, only(life, report, key))[key].realised["log_loss"]
    bound = (value.low + value.value) / 2
    unsure = {"performance": {"tolerance": 5.0, "bound": bound}}
    found = measured(life, only(life, report, key), with_sections(life, monitoring=unsure))[key]
    assert found.bound == bound
    assert found.violates == ()
    sure = {"performance": {"tolerance": 5.0, "bound": value.low * 0.99}}
    found = measured(life, only(life, report, key), with_sections(life, monitoring=sure))[key]
    assert found.violates == ("performance",)
    assert found.because[0].endswith("the declared bound")


@pytest.mark.parametrize(("metric", "bound"), [("log_loss", 9.0), ("roc_auc", 0.01)])
def test_of_two_bounds_the_stricter_counts(
    life: Life, report: LabelReport, metric: str, bound: float
) -> None:
    section = {"performance": {"metric": metric, "bound": bound}}
    found = measured(life, only(life, report, BROKEN), with_sections(life, monitoring=section))
    assert found[BROKEN].bound != bound
    assert "at promotion" in found[BROKEN].because[0]


def test_no_better_than_naive_is_bad_enough(life: Life, report: LabelReport) -> None:
    """With a tolerance that forgives everything."""
    section = {"performance": {"tolerance": 100.0}}
    found = measured(life, only(life, report, BROKEN), with_sections(life, monitoring=section))
    assert "performance" in found[BROKEN].violates
    assert len(found[BROKEN].because) == 1
    assert found[BROKEN].because[0].startswith("no better than a naive model (prior): realised")


def test_slices(life: Life, report: LabelReport) -> None:
    found = measured(life, only(life, report, "2013-01-04"))["2013-01-04"]
    rows, labels = rows_of(life, report, "2013-01-04")
    for kind in ("a", "b"):
        where = (rows["kind"] == kind).to_numpy()
        value = found.slices["kind"][kind]
        assert value.value == pytest.approx(log_loss(labels[where], rows["prediction"][where]))
        assert value.low < value.value < value.high
        assert found.slice_rows["kind"][kind] == where.sum()
    by_rank = with_sections(life, evaluation={**EVALUATION, "primary": "roc_auc"})
    again = measured(life, only(life, report, "2013-01-04"), by_rank)["2013-01-04"]
    assert again.slices["kind"]["a"].low < again.slices["kind"]["a"].high
    many = with_sections(life, evaluation={**EVALUATION, "min_slice_rows": 190})
    assert measured(life, only(life, report, "2013-01-04"), many)["2013-01-04"].slices == {}


def test_too_few_labels_are_judged_by_the_estimate(life: Life, report: LabelReport) -> None:
    """On the flat day the version itself knows that it doesn't know."""
    partly = with_labels(life, report, hide(0.6), "2013-01-04", FLAT)
    few = with_sections(life, monitoring={"min_rows": 20})
    found = measured(life, partly, few)
    assert found["2013-01-04"].basis == found[FLAT].basis == "estimated"
    assert found["2013-01-04"].violates == ()
    assert found["2013-01-04"].matured == 80
    assert found["2013-01-04"].realised["log_loss"].value > 0  # shown all the same
    assert found["2013-01-04"].target is None
    assert found[FLAT].violates == ("performance",)
    assert found[FLAT].because[0].startswith("estimated log_loss 0.6")


@pytest.mark.parametrize(
    ("share", "monitoring", "why"),
    [
        (0.6, {"min_rows": 20}, "40% of the window's labels are known, 50% needed"),
        (0.1, {"min_rows": 500}, "180 labels to measure by, 500 needed"),
        (2.0, {"min_rows": 20}, "0 labels to measure by, 20 needed"),
    ],
)
def test_or_not_at_all(
    life: Life, report: LabelReport, share: float, monitoring: dict[str, Any], why: str
) -> None:
    declaration = with_sections(life, monitoring={**monitoring, "estimate": False})
    found = measured(life, with_labels(life, report, hide(share), BROKEN), declaration)[BROKEN]
    assert found.basis == "nothing"
    assert found.skipped == f"{why}, and there is no estimate; estimates are switched off"
    assert "performance" not in found.violates
    assert found.estimated == {}
    assert any(f"not judged by log_loss: {why}" in line for line in found.lines())


def test_all_that_had_to_be_known_was_known_late(life: Life, report: LabelReport) -> None:
    """The same window, judged when its labels had come."""
    declaration = with_sections(life, monitoring={"estimate": False})
    partly = with_labels(life, report, hide(0.6), BROKEN)
    assert measured(life, partly, declaration)[BROKEN].skipped
    later = partly.model_copy(update={"as_of": datetime(2029, 6, 1, tzinfo=UTC)})
    found = measured(life, later, declaration)[BROKEN]
    assert found.matured == 200
    assert "performance" in found.violates


def test_a_class_that_the_version_never_saw_is_counted(life: Life, report: LabelReport) -> None:
    def strange(labels: pd.DataFrame) -> pd.DataFrame:
        return labels.assign(label=labels["label"].mask(labels["row_id"] < 30, 7.0))

    changed = with_labels(life, report, strange, "2013-01-04")
    declaration = with_sections(life, monitoring={"min_rows": 100, "drift": {"on": []}})
    found = measured(life, changed, declaration)["2013-01-04"]
    rows, labels = rows_of(life, report, "2013-01-04")
    kept = (rows["row_id"] >= 30).to_numpy()
    assert (found.matured, found.unseen) == (200, 30)
    assert found.realised["log_loss"].value == pytest.approx(
        log_loss(labels[kept], rows["prediction"][kept])
    )
    assert found.notes[0].startswith("30 labels are of a class that the version never saw")


def test_a_version_of_unknown_origin_is_skipped(life: Life, report: LabelReport) -> None:
    state = DetectorState(version="1", uri="nowhere", sha256="0", rows=3)
    lost = only(life, report, BROKEN).model_copy(update={"origins": {}})
    found = measure_performance(life.declaration, life.workspace, lost, {"1": state})
    assert "version 1: it was promoted before" in (found.windows[0].skipped or "")
    assert (found.windows[0].rows, found.windows[0].matured) == (200, 200)
    assert found.detectors == {"1": state}


def test_labels_drift_when_their_mix_changes(life: Life, report: LabelReport) -> None:
    def all_late(labels: pd.DataFrame) -> pd.DataFrame:
        return labels.assign(label=1.0)

    changed = with_labels(life, report, all_late, "2013-01-04")
    found = measured(life, changed)["2013-01-04"]
    assert found.target is not None
    assert found.target.column == "late"
    assert found.target.drifted
    assert "target" in found.violates
    quiet = with_sections(life, monitoring={"drift": {"on": ["inputs"]}})
    assert "target" not in measured(life, changed, quiet)["2013-01-04"].violates
    same = measured(life, only(life, report, "2013-01-04"))["2013-01-04"]
    assert same.target is not None
    assert not same.target.drifted


def test_too_few_days_are_resampled_by_hour(life: Life, report: LabelReport) -> None:
    declaration = with_sections(life, gate={"resample": "day", "resamples": 400})
    found = measured(life, only(life, report, "2013-01-04"), declaration)["2013-01-04"]
    assert found.notes[0] == "fewer than 7 days: resampled by hour, intervals are narrow"
    assert found.realised["log_loss"].low < found.realised["log_loss"].high


def test_a_repeat_says_the_same(life: Life, report: LabelReport) -> None:
    one = measure_performance(life.declaration, life.workspace, report, {})
    assert measure_performance(life.declaration, life.workspace, report, {}) == one
    assert PerformanceReport.model_validate(one.to_dict()) == one
    assert any("violates: performance" in line for line in one.describe())


def test_nobody_is_measured_twice(life: Life, report: LabelReport) -> None:
    stale = report.model_copy(
        update={
            "windows": tuple(
                window.model_copy(update={"learned": False, "fresh": window.key == BROKEN})
                for window in report.windows
            )
        }
    )
    assert set(measured(life, stale)) == {BROKEN}


def test_concept_drift_marks_windows_until_the_error_falls(life: Life, report: LabelReport) -> None:
    other = DetectorState(version="0", uri="nowhere", sha256="0", rows=3)
    broken = only(life, report, *STABLE, BROKEN)
    found = measure_performance(life.declaration, life.workspace, broken, {"0": other})
    state = found.detectors["1"]
    assert found.detectors["0"] == other  # a version that nothing was learned of
    assert (state.rows, state.worse_since) == (800, BROKEN)
    assert [(each.version, each.worse, each.window) for each in found.detections] == [
        ("1", True, BROKEN)
    ]
    assert [w.window for w in found.windows if "concept" in w.violates] == [BROKEN]
    quiet = with_sections(life, monitoring={"drift": {"on": ["inputs"]}})
    assert not any("concept" in w.violates for w in measured(life, broken, quiet).values())


def test_a_window_measured_again_keeps_its_mark(life: Life, report: LabelReport) -> None:
    """No label is new to the detectors; while the error is up, its window and newer ones say so."""
    parts = [
        part.model_copy(update={"before": LabelsKnown(uri=part.labels, as_of=report.as_of)})
        for part in report.partitions
    ]
    known = report.model_copy(update={"partitions": tuple(parts)})
    for since, marked in ((BROKEN, [BROKEN, FLAT]), (None, [])):
        state = DetectorState(version="1", uri="nowhere", sha256="0", rows=800, worse_since=since)
        found = measure_performance(life.declaration, life.workspace, known, {"1": state})
        assert found.detectors == {"1": state}
        assert [w.window for w in found.windows if "concept" in w.violates] == marked
