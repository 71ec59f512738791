"""Every operator: run, run again, and kill in the middle then run: the same rows, files, digests.

`repeat_harness` does it in a process of its own; here is what must hold of its report.
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.scenarios.repeat_model import REPOSITORY

pytestmark = [pytest.mark.integration, pytest.mark.minutes(3)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("repeat")
    for name in ("home", "aside"):
        (folder / name).mkdir()
    places = {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "EVERGREEN_HOME": str(folder / "home"),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # two threads that spin for two busy cores only get slower
        "TMPDIR": str(folder / "aside"),  # what a killed process can't sweep up goes with the test
    }
    settings = ("AIRFLOW_", "EVERGREEN_", "MLFLOW_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(settings)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.scenarios.repeat_harness", str(folder)],
        cwd=REPOSITORY, env={**kept, **places}, capture_output=True, text=True, timeout=540,
        check=False,
    )  # fmt: skip
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stderr[-5000:]
    return dict(json.loads((folder / "report.json").read_text()))


def test_the_life_that_is_repeated_is_a_whole_one(report: dict[str, Any]) -> None:
    """Nothing else was skipped or refused: a second champion replaced the first, which came back
    at the end, and days were scored."""
    assert set(report["raised"]) == {"punctuality.retrain.roll_back"}  # the arbiter says retrain
    assert report["promotions"] == [1, 2, 3]
    assert report["scores"] > 0


def test_every_operator_was_killed_in_the_middle(report: dict[str, Any]) -> None:
    spared = {each["task"] for each in report["reports"] if len(each["kills"]) < 3}
    spared -= {"retrain.roll_back"}  # it has nothing to do here, and takes no time for that
    assert report["reports"]
    assert not spared


def test_repeating_changes_nothing(report: dict[str, Any]) -> None:
    different = [
        "\n".join([f"{each['operator']} ({each['task']}) after {moment}:", *lines[:30]])
        for each in report["reports"]
        for moment, lines in each["differences"].items()
    ]
    assert not different, "\n\n".join(different)
