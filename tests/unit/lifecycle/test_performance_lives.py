"""Performance over whole lives, monitored as the DAG does it: every kind of label, a KPI, several days."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from evergreen.lifecycle.contracts import DriftReport, PerformanceReport
from evergreen.lifecycle.monitoring import detector_states, join_labels, raise_signals
from evergreen.lifecycle.performance import measure_performance
from tests.lifelike import SMALL, Life
from tests.printing import Figure


def monitor(life: Life, as_of: datetime | None = None) -> PerformanceReport:
    """One monitoring, written down, as the DAG does it."""
    labels = join_labels(life.declaration, life.workspace, as_of=as_of)
    assert labels is not None
    states = detector_states(life.declaration, life.workspace, labels)
    found = measure_performance(life.declaration, life.workspace, labels, states)
    drift = DriftReport(model=labels.model, as_of=labels.as_of, sequence=labels.sequence)
    raise_signals(life.declaration, life.workspace, labels, drift, found)
    return found


def test_live_and_backfill_find_the_same(tmp_path: Path) -> None:
    """Monitored every day, or once for all: the same detections, states and judgements."""

    def begin(name: str) -> Life:
        life = Life.begin(tmp_path / name, monitoring={"drift": {"concept": ["adwin", "ddm"]}})
        life.land(1)
        life.land(2)
        assert life.retrain("run 1").promotes
        return life

    (tmp_path / "live").mkdir()
    (tmp_path / "late").mkdir()
    live, late = begin("live"), begin("late")
    reports = []
    for day in range(3, 8):
        for one in (live, late):
            one.land(day, slope=2.0 if day < 5 else -2.0)
        live.score()
        reports.append(monitor(live))
    late.score()
    whole = monitor(late)
    assert [d for each in reports for d in each.detections] == list(whole.detections)
    assert whole.detections
    last = reports[-1].detectors["1"]
    assert (last.sha256, last.rows, last.worse_since) == (
        whole.detectors["1"].sha256,
        1000,
        whole.detectors["1"].worse_since,
    )
    daily = {window.window: window.violates for each in reports for window in each.windows}
    assert daily == {window.window: window.violates for window in whole.windows}
    assert "concept" in daily["2013-01-07"]


def test_several_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    life = Life.begin(
        tmp_path,
        task="multiclass_classification",
        evaluation={"primary": "log_loss", "metrics": ["roc_auc", "f1_macro"]},
    )

    def land(day: int, *, turned: bool = False) -> None:
        x = rng.normal(size=200)
        classes = np.where(x < -0.4, "low", np.where(x < 0.4, "mid", "top"))
        shuffled = np.where(classes == "low", "top", np.where(classes == "top", "low", "mid"))
        life.land(day, x=x, late=shuffled if turned else classes)

    land(1)
    land(2)
    assert life.retrain("run 1").promotes
    land(3)
    land(4, turned=True)
    life.score()
    found = {window.window: window for window in monitor(life).windows}
    assert set(found["2013-01-03"].realised) == {"log_loss", "roc_auc", "f1_macro"}
    assert set(found["2013-01-03"].estimated) == {"log_loss", "roc_auc", "f1_macro"}
    assert "performance" not in found["2013-01-03"].violates
    assert "performance" in found["2013-01-04"].violates


def test_regression(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    life = Life.begin(
        tmp_path,
        task="regression",
        evaluation={
            "primary": "mean_absolute_error",
            "metrics": ["r2", "root_mean_squared_error"],
            "baseline": "median",
        },
        training={**SMALL["training"], "estimator": "sklearn.linear_model.LinearRegression"},
        monitoring={"drift": {"concept": ["adwin", "page_hinkley", "ddm"]}},
    )

    def land(day: int, slope: float = 3.0) -> None:
        x = rng.normal(size=200)
        life.land(day, x=x, late=slope * x + rng.normal(0, 1, 200))

    land(1)
    land(2)
    assert life.retrain("run 1").promotes
    land(3)
    land(4, slope=-3.0)
    life.score()
    found = {window.window: window for window in monitor(life).windows}
    assert "performance" not in found["2013-01-03"].violates
    assert {"performance", "concept"} <= set(found["2013-01-04"].violates)
    assert set(found["2013-01-03"].realised) == {
        "mean_absolute_error",
        "r2",
        "root_mean_squared_error",
    }
    assert set(found["2013-01-03"].estimated) == {"mean_absolute_error", "root_mean_squared_error"}
    assert any("not estimated: r2" in note for note in found["2013-01-03"].notes)
    assert any("DDM counts wrong classes" in note for note in found["2013-01-04"].notes)


def test_a_kpi_is_watched_like_a_metric(tmp_path: Path) -> None:
    (tmp_path / "money.py").write_text(
        "def profit(labels, predictions):\n"
        "    return (predictions >= 0.5) * (labels * 10.0 - 4.0)\n"
    )
    kpi = {"name": "profit", "function": "money:profit", "greater_is_better": True}
    life = Life.begin(
        tmp_path,
        evaluation={"primary": "log_loss", "kpi": kpi},
        monitoring={"performance": {"metric": "profit"}, "drift": {"on": ["inputs"]}},
    )
    life.land(1)
    life.land(2)
    assert life.retrain("run 1").promotes
    life.land(3)
    life.land(4, slope=-2.0)
    life.score()
    good, bad = monitor(life).windows
    assert good.violates == ()
    assert good.estimated["profit"].value == pytest.approx(good.realised["profit"].value, abs=0.8)
    assert bad.violates == ("performance",)
    assert "realised profit" in bad.because[0]


def test_windows_of_several_days(tmp_path: Path, figure: Figure) -> None:
    """Ten days like the holdout, three a window: how often is a good version called bad?"""
    life = Life.begin(tmp_path, monitoring={"window": 3, "drift": {"on": []}})
    life.land(1)
    life.land(2)
    life.land(3)
    assert life.retrain("run 1").promotes
    for day in range(4, 14):
        life.land(day)
    life.score()
    windows = monitor(life).windows
    wrong = [window.window for window in windows if window.violates]
    figure(f"{len(wrong)} of {len(windows)} stable windows violate")
    assert len(windows) == 10
    assert windows[-1].rows == 600
    assert len(wrong) <= 1
