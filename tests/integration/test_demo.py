"""The demo from end to end: a year of flights, and what it must show."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import pytest

from tests.integration.lived import MINUTES, Year
from tests.policies import MONTHLY, declared
from tests.printing import Figure

pytestmark = [
    pytest.mark.minutes(7),
    pytest.mark.integration,
    pytest.mark.timeout((MINUTES + 1) * 60),
]


@pytest.fixture(scope="session", autouse=True)
def monthly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """The year with a retrain each month, rehearsed while the demo, which often waits, lives its own."""
    folder = tmp_path_factory.mktemp("monthly")
    command = [
        sys.executable,
        "-m",
        "tests.policies",
        str(folder),
        json.dumps({"triggers": MONTHLY}),
    ]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


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
    year: Year, monthly: subprocess.Popen[str], figure: Figure
) -> None:
    """The declared triggers are drift and performance alone."""
    rows = year.rows
    assert declared().triggers.schedule is None
    assert declared().triggers.new_data is None
    said, _ = monthly.communicate(timeout=MINUTES * 60)
    assert monthly.returncode == 0
    found = re.fullmatch(r"(\d+) retrains, mean log loss ([\d.]+)", said.splitlines()[-1])
    assert found is not None, said
    times, always = int(found[1]), float(found[2])
    retrains = sum(row["decision"] == "retrain" for row in rows) - 1
    watched = mean(rows, "champion", "log_loss")
    figure(
        "retrains after the first version, mean log loss March to December:"
        f"\n  by drift and performance  {retrains:>2}  {watched:.4f}"
        f"\n  monthly                   {times:>2}  {always:.4f}"
        f"\n  ({watched / always - 1:+.2%})"
    )
    assert times == 11
    assert retrains < times
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
