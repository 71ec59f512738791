"""The demo from end to end: a year of flights, and what it must show."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import pytest

from tests.policies import MONTHLY, datasets, declared, rehearse

MINUTES = 25


@pytest.fixture(scope="module")
def year(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> tuple[list[dict[str, Any]], str, Path]:
    """The report, what was printed, and the demo's home."""
    folder = tmp_path_factory.mktemp("year")
    report, home = folder / "report.json", folder / "home"
    command = [
        str(Path(sys.executable).with_name("evergreen")),
        *("demo", "--exit", "--home", str(home), "--report", str(report)),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=MINUTES * 60, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print("\n" + done.stdout)  # noqa: T201 - the figures are what this run is for
    return json.loads(report.read_text()), done.stdout, home


pytestmark = [pytest.mark.integration, pytest.mark.timeout((MINUTES + 1) * 60)]


def mean(rows: list[dict[str, Any]], who: str, metric: str) -> float:
    return fmean(row["metrics"][who][metric] for row in rows if row["partition"] >= "2013-03")


def test_a_year_is_twelve_decided_months(year: tuple[list[dict[str, Any]], str, Path]) -> None:
    rows, _, _ = year
    assert [row["partition"] for row in rows] == [f"2013-{month:02}" for month in range(1, 13)]
    assert rows[0]["verdict"] == "bootstrap"
    assert {row["decision"] for row in rows} <= {"retrain", "suppress", "investigate"}
    assert any(row["drift"] is not None and row["violates"] for row in rows)
    assert any(row["decision"] == "suppress" for row in rows), "nothing was left alone"
    assert all(row["reason"] and row["rows"] > 20_000 and row["seconds"] > 0 for row in rows)
    assert len({row["champion_version"] for row in rows}) > 1


def test_the_champion_beats_the_frozen_january_model(
    year: tuple[list[dict[str, Any]], str, Path],
) -> None:
    rows, _, _ = year
    assert mean(rows, "champion", "log_loss") <= 0.500
    assert mean(rows, "champion", "roc_auc") >= 0.710
    assert mean(rows, "champion", "log_loss") < mean(rows, "frozen", "log_loss")
    assert mean(rows, "champion", "roc_auc") > mean(rows, "frozen", "roc_auc")


def test_fewer_trainings_than_monthly_and_hardly_worse(
    year: tuple[list[dict[str, Any]], str, Path], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """The declared triggers are drift and performance alone; the other year is rehearsed."""
    rows, _, home = year
    assert declared().triggers.schedule is None
    assert declared().triggers.new_data is None
    monthly = rehearse(tmp_path / "monthly", datasets(home / "dataset"), declared(triggers=MONTHLY))
    retrains = sum(row["decision"] == "retrain" for row in rows) - 1
    watched, always = mean(rows, "champion", "log_loss"), monthly.mean("log_loss")
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print(  # noqa: T201 - the comparison is asked for
            f"\nretrains after the first version, mean log loss March to December:"
            f"\n  by drift and performance  {retrains:>2}  {watched:.4f}"
            f"\n  monthly                   {monthly.retrains:>2}  {always:.4f}"
            f"\n  ({watched / always - 1:+.2%})"
        )
    assert monthly.retrains == 11
    assert retrains < monthly.retrains
    assert watched <= 1.01 * always


def test_it_says_where_to_look_and_why(year: tuple[list[dict[str, Any]], str, Path]) -> None:
    rows, printed, _ = year
    assert "Airflow is up" in printed
    assert "password" in printed
    for row in rows:
        assert f"{row['partition']}: {row['verdict'] or row['decision']}" in printed


def test_nothing_is_left_running(year: tuple[list[dict[str, Any]], str, Path]) -> None:
    _, _, home = year
    left = [
        process.info
        for process in psutil.process_iter(["pid", "cmdline", "environ"])
        if (process.info["environ"] or {}).get("EVERGREEN_HOME", "").startswith(str(home))
    ]
    assert not left
