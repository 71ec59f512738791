"""The warm executor: what it imports, what it forgives, and when it does nothing."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.executors.local_executor import LocalExecutor

from evergreen import executors
from evergreen.executors import (
    PRELOAD,
    PRELOAD_SERVICES,
    WarmLocalExecutor,
    lifecycle_modules,
    preload,
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the fork and the imports by a list of what happened."""
    events: list[str] = []
    monkeypatch.setattr(LocalExecutor, "start", lambda _: events.append("fork"))
    monkeypatch.setattr(executors, "preload", lambda _: events.append("import") or {})
    return events


def test_modules_are_imported_before_workers_are_forked(started: list[str]) -> None:
    executor = WarmLocalExecutor(parallelism=1)
    executor.is_mp_using_fork = True
    executor.start()
    assert started == ["import", "fork"]


def test_nothing_is_imported_where_workers_inherit_nothing(started: list[str]) -> None:
    executor = WarmLocalExecutor(parallelism=1)
    executor.is_mp_using_fork = False
    executor.start()
    assert started == ["fork"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not fork by default")
def test_airflow_forks_its_workers() -> None:
    assert multiprocessing.get_start_method() == "fork"
    assert WarmLocalExecutor(parallelism=1).is_mp_using_fork


def test_a_missing_module_is_named_and_the_others_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "evergreen_test_broken.py").write_text("raise OSError('no such library')")
    (tmp_path / "evergreen_test_good.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with caplog.at_level(logging.WARNING, logger="evergreen.executors"):
        skipped = preload(["evergreen_test_absent", "evergreen_test_broken", "evergreen_test_good"])
    assert skipped == {
        "evergreen_test_absent": "ModuleNotFoundError: No module named 'evergreen_test_absent'",
        "evergreen_test_broken": "OSError: no such library",
    }
    assert "evergreen_test_good" in sys.modules
    assert [record.getMessage() for record in caplog.records] == [
        f"Not preloaded: {name} ({reason})" for name, reason in skipped.items()
    ]


def test_what_a_saved_model_asks_of_the_environment_is_read_before_the_fork(tmp_path: Path) -> None:
    """And skops, which asks every module for SciPy's names, brings up no warning of Airflow's."""
    code = """
import gc
import airflow.utils.timezone, airflow.utils.trigger_rule
from evergreen.executors import warm_up
warm_up(["skops.io"])
from mlflow.utils import requirements_utils
assert "scikit-learn" in requirements_utils._PACKAGES_TO_MODULES
assert gc.isenabled()
"""
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        env={**os.environ, "AIRFLOW_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "attribute is deprecated" not in done.stdout + done.stderr


def test_telemetry_is_off_unless_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"MPLBACKEND": "svg"}
    monkeypatch.setattr("os.environ", environ)
    preload([])
    assert environ == {
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MPLBACKEND": "svg",
    }


def test_great_expectations_registers_in_silence() -> None:
    preload([])
    assert not logging.getLogger("great_expectations").isEnabledFor(logging.INFO)


def test_every_lifecycle_module_is_found() -> None:
    folder = Path(executors.__file__).parent / "lifecycle"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {f"evergreen.lifecycle.{stem}" for stem in files} <= set(lifecycle_modules())


def test_the_preload_list_names_each_module_once() -> None:
    both = (*PRELOAD, *PRELOAD_SERVICES)
    assert len(both) == len(set(both))
