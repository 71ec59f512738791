"""A store that runs out of room while a run is under way: the task fails and says so, nothing is left
half-written, and the same run, cleared, leaves what an undisturbed one does."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from evergreen.operators import ExtractSnapshotOperator
from tests.scenarios.project import Project, month
from tests.scenarios.runs import Run, _dag, _deployed, _task_logs
from tests.scenarios.state import State, capture

pytestmark = pytest.mark.dags

ROOM = "64m"
#: The undisturbed run bears the same name, so that the ledgers can be compared.
RUN = "manual__full"

OUTCOMES = "ledger.outcomes: "
#: What the infrastructure check measures, as a verdict's rules say it.
MEASURED = re.compile(r"\d[\d.,]* (ms|MB)\b")


@pytest.fixture
def tight(empty: Project) -> Iterator[Project]:
    """A project whose store is a small file system of its own."""
    store = empty.home / "store"
    store.mkdir(parents=True)
    if os.geteuid():
        pytest.skip("a file system of its own can be mounted by root alone")
    options = ["-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(store)]
    subprocess.run(["mount", *options], check=True, timeout=10)
    try:
        yield empty
    finally:
        subprocess.run(["umount", "--lazy", str(store)], check=True, timeout=10)


def _fill(filler: Path, left: int) -> None:
    """Leave that many bytes."""
    room = os.statvfs(filler.parent)
    filler.write_bytes(b"\0" * (room.f_bavail * room.f_frsize - left))


def _ingest(project: Project) -> str:
    """January's file, of the same age in every project: the ledger keeps when it was written."""
    project.land(m2024_01=month("2024-01"))
    os.utime(project.home / "landing" / "2024-01.parquet", (0, 0))
    run = project.ingest()
    assert run.state == "success"
    return run.run_id


def _retrain(project: Project, get: Callable[..., Any], at: datetime | None) -> Run:
    """Airflow's own loop over the run that ``get`` gives; it clears what it has at ``at``."""
    from airflow.models import dagrun

    dag_id = f"{project.name}.retrain"
    with (
        _deployed(project.folder / "dags", dag_id, project.home),
        patch.object(dagrun, "get_or_create_dagrun", get),
        _task_logs() as logs,
    ):
        run = _dag(project.folder / "dags", dag_id).test(logical_date=at, run_conf={})
    tasks = run.get_task_instances()
    return Run(
        run_id=run.run_id, state=str(run.state), states={t.task_id: str(t.state) for t in tasks},
        tries={t.task_id: t.try_number for t in tasks},
        logs={task: "\n".join(lines) for task, lines in logs.items()},
    )  # fmt: skip


def _retrain_anew(project: Project) -> Run:
    """A run as a new partition's asset event makes it. It replaces the one before."""
    from airflow.models import dagrun

    create = dagrun.get_or_create_dagrun

    def get(**given: Any) -> Any:
        run = create(**{**given, "run_id": RUN})
        run.run_type = "asset_triggered"
        given["session"].commit()
        return run

    return _retrain(project, get, None)


def _retrain_cleared(project: Project) -> Run:
    """The same run, of which a person has cleared what failed and what came after it."""
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import clear_task_instances
    from airflow.utils.state import DagRunState
    from sqlalchemy import select

    def get(*, dag: Any, session: Any, **_given: Any) -> Any:
        run = session.scalar(select(DagRun).where(DagRun.run_id == RUN))
        tasks = run.get_task_instances(session=session)
        names = {task.task_id for task in tasks if task.state == "failed"}
        names |= {after for n in names for after in dag.get_task(n).get_flat_relative_ids()}
        undone = [task for task in tasks if task.task_id in names]
        clear_task_instances(undone, session, dag_run_state=DagRunState.RUNNING)
        run.dag = dag
        session.commit()
        return run

    return _retrain(project, get, datetime(2000, 1, 1, tzinfo=UTC))


class Placed(State):
    """A workspace, wherever it lies and whatever its runs are called."""

    names: Mapping[str, str] = {}

    @cached_property
    def _ids(self) -> dict[str, str]:
        ids: dict[str, str] = State._ids.func(self)  # type: ignore[attr-defined]  # a cached_property's
        return {**ids, **self.names}


def _ledger(project: Project, ingested: str) -> list[str]:
    """The ledger's rows, with ids and addresses said by what they stand for."""
    found = capture(project.home)
    state = Placed(found.rows, found.files)
    names = {str(project.home): "<home>", ingested: "<ingest>"}
    object.__setattr__(state, "names", names)
    lines = [line for line in state.canonical() if line.startswith("ledger.")]
    # Outcomes are only ever added: that the run had failed stays, before how it ended after all.
    kept = [line for line in lines if not (line.startswith(OUTCOMES) and '"failed"' in line)]
    kept = [re.sub(r'"id": \d+, ', "", x) if x.startswith(OUTCOMES) else x for x in kept]
    return [MEASURED.sub("measured", line) for line in kept]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The ledger of a run that nothing happened to."""
    project = Project.create(tmp_path_factory.mktemp("undisturbed") / "project")
    ingested = _ingest(project)
    assert _retrain_anew(project).state == "success"
    return _ledger(project, ingested)


@pytest.mark.parametrize("left", [0, 16_384, 65_536])
def test_a_store_that_fills_up_fails_a_task_and_the_cleared_run_is_as_if_it_had_not(
    tight: Project, undisturbed: list[str], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingested = _ingest(tight)

    filler = tight.home / "store" / "filler"
    finish = ExtractSnapshotOperator.finish

    def fill_up(*given: Any) -> None:
        finish(*given)
        _fill(filler, left)

    with monkeypatch.context() as patched:
        patched.setattr(ExtractSnapshotOperator, "finish", fill_up)
        run = _retrain_anew(tight)
    assert run.state == "failed"
    (failed,) = [task for task, state in run.states.items() if state == "failed"]
    assert (run.states["arbitrate"], run.states["extract"]) == ("success", "success")
    assert f"the store at file://{tight.home}/store can't be reached" in run.logs[failed]
    assert "No space left on device" in run.logs[failed]
    assert tight.last("promotion") is None

    for path in (tight.home / "store" / "documents").rglob("*.json"):
        assert json.loads(path.read_text()), "half-written"
    assert not list((tight.home / "store").rglob("*.aside-*"))
    filler.unlink()
    run = _retrain_cleared(tight)
    assert (run.state, run.states["promote"]) == ("success", "success"), run.logs
    assert run.tries["extract"] == 1, "only what had failed ran again"
    assert _ledger(tight, ingested) == undisturbed
    assert (tight.last("outcome").outcome, tight.open_causes()) == ("promoted", [])
    assert set(tight.versions()) == {"1"}
