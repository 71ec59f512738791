"""The demo from end to end: a year of flights, and what it must show."""

from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import pytest

from tests.integration.lived import MINUTES, Year
from tests.policies import MONTHLY, datasets, declared, rehearse
from tests.printing import Figure

pytestmark = [
    pytest.mark.minutes(7),
    pytest.mark.integration,
    pytest.mark.timeout((MINUTES + 1) * 60),
]


def mean(rows: list[dict[str, Any]], who: str, metric: str) -> float:
    return fmean(row["metrics"][who][metric] for row in rows if row["partition"] >= "2013-03")


def test_a_year_is_twelve_decided_months(year: Year, figure: Figure) -> None:
    rows = year.rows
    figure(year.printed)
    assert [row["partition"] for row in rows] == [f"2013-{month:02}" for month in range(1, 13)]
    assert rows[0]["verdict"] == "bootstrap"
    assert {row["decision"] for row in rows} <= {"retrain", "suppress", "investigate"}
    assert any(row["drift"] is not None and row["violates"] for row in rows)
    assert any(row["decision"] == "suppress" for row in rows), "nothing was left alone"
    assert all(row["reason"] and row["rows"] > 20_000 and row["seconds"] > 0 for row in rows)
    assert len({row["champion_version"] for row in rows}) > 1


def test_the_champion_beats_the_frozen_january_model(year: Year) -> None:
    rows = year.rows
    assert mean(rows, "champion", "log_loss") <= 0.500
    assert mean(rows, "champion", "roc_auc") >= 0.710
    assert mean(rows, "champion", "log_loss") < mean(rows, "frozen", "log_loss")
    assert mean(rows, "champion", "roc_auc") > mean(rows, "frozen", "roc_auc")


def test_fewer_trainings_than_monthly_and_hardly_worse(
    year: Year, tmp_path: Path, figure: Figure
) -> None:
    """The declared triggers are drift and performance alone; the other year is rehearsed."""
    rows, home = year.rows, year.home
    assert declared().triggers.schedule is None
    assert declared().triggers.new_data is None
    monthly = rehearse(tmp_path / "monthly", datasets(home / "dataset"), declared(triggers=MONTHLY))
    retrains = sum(row["decision"] == "retrain" for row in rows) - 1
    watched, always = mean(rows, "champion", "log_loss"), monthly.mean("log_loss")
    figure(
        "retrains after the first version, mean log loss March to December:"
        f"\n  by drift and performance  {retrains:>2}  {watched:.4f}"
        f"\n  monthly                   {monthly.retrains:>2}  {always:.4f}"
        f"\n  ({watched / always - 1:+.2%})"
    )
    assert monthly.retrains == 11
    assert retrains < monthly.retrains
    assert watched <= 1.01 * always


def test_it_says_where_to_look_and_why(year: Year) -> None:
    rows, printed = year.rows, year.printed
    assert "Airflow is up" in printed
    assert "password" in printed
    for row in rows:
        assert f"{row['partition']}: {row['verdict'] or row['decision']}" in printed


def test_nothing_is_left_running(year: Year) -> None:
    home = year.home
    left = [
        process.info
        for process in psutil.process_iter(["pid", "cmdline", "environ"])
        if (process.info["environ"] or {}).get("EVERGREEN_HOME", "").startswith(str(home))
    ]
    assert not left
