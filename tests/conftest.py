"""The environment of every test, set before anything imports Airflow.

Airflow reads its settings once, when it is first imported, so they are set here and not in a
fixture: a home of its own, no examples, and no call to anybody.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.scheduling import THIRD, Scheduling, give_way

_HOME = Path(tempfile.mkdtemp(prefix="evergreen-tests-"))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)

if os.environ.get("PYTEST_XDIST_WORKER") == THIRD:
    give_way()

_SKIPS = os.environ.get("EVERGREEN_TEST_SKIPS")
for _name in [name for name in os.environ if name.startswith(("AIRFLOW", "EVERGREEN", "MLFLOW"))]:
    if not _name.startswith("EVERGREEN_TEST_"):
        del os.environ[_name]  # a developer's own deployment is not what tests look at
os.environ |= {
    "AIRFLOW_HOME": str(_HOME / "airflow"),
    "AIRFLOW__CORE__DAGS_FOLDER": str(_HOME / "dags"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__PLUGINS_FOLDER": str(_HOME / "plugins"),
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",  # what runs side by side are tests
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
}

gc.disable()  # until all is imported and collected, which is no garbage

import pytest  # noqa: E402 - pytest reads no Airflow settings; imports below need those above

from tests.printing import Figure, figure_of, figures_in  # noqa: E402 - as above


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Say a figure that the run is for; all are printed at its end."""
    return figure_of(request.node.user_properties)


@pytest.fixture(scope="module", autouse=True)
def imported() -> Iterator[None]:
    """What a file's tests have imported stays, too."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def forks() -> Iterator[None]:
    """Clean processes are forked, as for a warm worker's tasks."""
    from evergreen.lifecycle import infrastructure_process

    infrastructure_process.start()
    yield
    infrastructure_process.stop()


def pytest_collection_finish() -> None:
    """What has been imported stays; nobody looks through it again."""
    gc.enable()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have said to ``figure``."""
    if said := figures_in(terminalreporter.stats):
        terminalreporter.section("figures")
        for text in said:
            terminalreporter.line(text)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With ``EVERGREEN_TEST_SKIPS=fail`` a skipped test is a failure: CI has all that tests need."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter is not None and reporter.stats.get("skipped")
    if skipped and _SKIPS == "fail" and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """Instead of ``--dist loadfile``'s own."""
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest first: of several processes none shall wait for another at the end."""
    longest: dict[Path, float] = {}
    for item in items:
        minutes = sum(mark.args[0] for mark in item.iter_markers("minutes"))
        longest[_place(item)] = max(minutes, longest.get(_place(item), 0.0))
    items.sort(key=lambda item: -longest[_place(item)])


def _place(item: pytest.Item) -> Path:
    """Its file; or its folder, whose files share what ends with the last of them."""
    folder = item.path.parent
    return folder if folder.name in {"composed", "together"} else item.path
