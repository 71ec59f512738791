"""Fifty retrains at once on the topology of docker-compose.yaml; then one thing breaks in each.

Fifty models (or ``EVERGREEN_TEST_FLEET``) of one recipe and one history, named apart, bootstrap at
the same time. Then each of some is retrained while something it stands on is restarted, killed, or
gone for a minute. In the end the ledger says of each what it says of the one that nothing disturbed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from evergreen.airflow_client import FINISHED, AirflowClient
from evergreen.declaration import read_declaration
from evergreen.errors import UnavailableError
from evergreen.ledger.tables import Table
from evergreen.lifecycle import connection
from evergreen.lifecycle.ingestion import ingest
from tests.integration.composed.conftest import Composed
from tests.integration.door import Door
from tests.integration.topology import PROJECT, Topology
from tests.printing import Figure
from tests.scenarios.project import Project, month

pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400), pytest.mark.minutes(15)]

FLEET = int(os.environ.get("EVERGREEN_TEST_FLEET", "50"))
#: Seconds that MLflow and the store are away.
AWAY = 60.0
#: Seconds that a retrain may take: an outage, the pauses between tries, a worker's lost heartbeat.
LIMIT = 420.0
#: Seconds that all may take together.
ALL = 1500.0
CALM = "model_calm"
LEFT_OUT = ("ingest", "score", "monitor", "drill")
#: Seconds since 1970 at which every file is said to have landed.
LANDED = 1_700_000_000


def _mlflow_is_down(it: Topology, _: Door) -> None:
    it.stop("mlflow")
    time.sleep(AWAY)  # that long it is away: what is asked for
    it.start("mlflow")


def _store_is_ill(it: Topology, way: Door) -> None:
    """Half of the time it answers 503, half of it it doesn't answer."""
    way.close()
    time.sleep(AWAY / 2)  # that long it refuses
    way.open()
    it.s3.pause()
    time.sleep(AWAY / 2)  # that long it hangs
    it.s3.resume()


FAULTS: dict[str, Callable[[Topology, Door], None]] = {
    "model_postgres": lambda it, _: it.postgres.restart(),
    "model_redis": lambda it, _: it.redis.restart(),
    "model_worker": lambda it, _: (it.kill("celery-worker"), it.start("celery-worker")),
    "model_scheduler": lambda it, _: (it.kill("airflow-scheduler"), it.start("airflow-scheduler")),
    "model_mlflow": _mlflow_is_down,
    "model_store": _store_is_ill,
}
#: Those that last longer than a retrain takes.
LASTING = {"model_mlflow", "model_store"}
SMALL: dict[str, Any] = {
    "data": {"sweep": "0 0 1 1 *"},
    "gate": {"resamples": 200},
    "rollback": {"drill": None},
}


class Fleet:
    """The running topology, and its models."""

    def __init__(self, it: Topology, way: Door, airflow: AirflowClient, project: Project) -> None:
        self.it, self.way, self.airflow, self.project = it, way, airflow, project

    def land(self, model: str, key: str) -> None:
        """A month lands and is registered; its file is as old for each model."""
        landing = self.it.folder / "home" / "landing" / model
        landing.mkdir(parents=True, exist_ok=True)
        file = landing / f"{key}.parquet"
        month(key).to_parquet(file, index=False)
        os.utime(file, (LANDED, LANDED))
        declaration = read_declaration(self.project.models / model)
        ingest(declaration, self.it.workspace, datetime(2024, 12, 1, tzinfo=UTC))

    def wait(
        self, model: str, run_id: str, until: Callable[[], bool], limit: float = LIMIT
    ) -> None:
        """Wait for ``until``; what has ended by itself meanwhile is started, as Docker would."""
        deadline = time.monotonic() + limit
        while not until():
            assert time.monotonic() < deadline, self.states(model, run_id)
            self.it.revive()
            time.sleep(0.5)  # between looks, until the deadline

    def states(self, model: str, run_id: str) -> dict[str, tuple[str, int]]:
        """Task → its state, and its tries."""
        tasks = self.airflow.task_instances(f"{model}.retrain", run_id)
        return {task["task_id"]: (task["state"], task["try_number"]) for task in tasks}

    def ended(self, model: str, run_id: str) -> bool:
        run: str = self.airflow.dag_run(f"{model}.retrain", run_id)["state"]
        return run in FINISHED

    def retrain(self, model: str, run_id: str) -> None:
        self.airflow.trigger(f"{model}.retrain", run_id, {"reason": "the test asks"})


@pytest.fixture(scope="module")
def fleet(composed: Composed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Fifty models, their first month registered; nothing is trained yet."""
    it = composed.it
    names = [CALM, *FAULTS, *(f"model_{n:02}" for n in range(FLEET - len(FAULTS) - 1))]
    project = Project.create(tmp_path_factory.mktemp("fleet"), CALM)
    for name in names:
        uri = f"landing/{name}/{{partition}}.parquet"
        data = {**SMALL["data"], "uri": uri}
        Project(project.folder, name).declare(**{**SMALL, "data": data})
    shutil.copytree(PROJECT / "include" / "feast", project.models.with_name("feast"))
    for family in LEFT_OUT:  # what starts by a clock would be one more retrain at midnight
        (project.folder / "dags" / f"{family}.py").unlink()
    it.deploy(dags=project.folder / "dags", include=project.folder / "include")
    with pytest.MonkeyPatch.context() as variables, it.airflow as airflow:
        for name, value in it.environment("celery-worker").items():
            if name.startswith(("AWS_", "EVERGREEN_", "MLFLOW_")):
                variables.setenv(name, value)
        found = Fleet(it, composed.way, airflow, project)
        for name in names:
            found.land(name, "2024-01")
        for name in names:
            airflow.wait_for_dag(f"{name}.retrain", 120)
        yield found


def test_fifty_retrains_queued_at_once_all_finish(fleet: Fleet, figure: Figure) -> None:
    names = sorted(path.name for path in fleet.project.models.iterdir())
    assert len(names) == FLEET
    began = time.monotonic()
    for name in names:
        fleet.retrain(name, "first")
    for name in names:
        fleet.wait(name, "first", lambda name=name: fleet.ended(name, "first"), ALL)
    seconds = time.monotonic() - began
    figure(f"{FLEET} retrains queued at once: {seconds:.0f} s, {FLEET / seconds * 60:.1f} a minute")
    every = {name: fleet.states(name, "first") for name in names}
    again = {
        f"{n}.{t}": tried for n, s in every.items() for t, (_, tried) in s.items() if tried > 1
    }
    figure(f"tasks tried again: {again or 'none'}")
    client = connection.client(fleet.it.workspace)
    for name, states in every.items():
        assert states.pop("roll_back")[0] == "skipped"
        assert set(states.values()) == {("success", 1)}, (name, states)
        assert [v.version for v in client.search_model_versions(f"name='{name}'")] == ["1"]
        _same_story(fleet, name)


@pytest.mark.parametrize("fault", [CALM, *FAULTS])
def test_a_retrain_survives(fleet: Fleet, fault: str, figure: Figure) -> None:
    fleet.land(fault, "2024-02")
    fleet.retrain(fault, "second")
    began = time.monotonic()
    if fault != CALM:
        at_work = {"running", "success"}
        fleet.wait(
            fault, "second", lambda: fleet.states(fault, "second")["build_features"][0] in at_work
        )
        FAULTS[fault](fleet.it, fleet.way)
        if fault in LASTING:  # no retrain ends without what was away: it was felt
            assert not _quietly(fleet, fault)
    fleet.wait(fault, "second", lambda: _quietly(fleet, fault))
    states = fleet.states(fault, "second")
    tries = {task: tried for task, (_, tried) in states.items() if tried > 1}
    figure(f"{fault}: ended after {time.monotonic() - began:.0f} s, tried again: {tries or 'none'}")
    assert fleet.airflow.dag_run(f"{fault}.retrain", "second")["state"] == "success", states
    client = connection.client(fleet.it.workspace)
    versions = client.search_model_versions(f"name='{fault}'")
    assert sorted(version.version for version in versions) == ["1", "2"]
    experiment = client.get_experiment_by_name(
        fleet.it.workspace.experiment(read_declaration(fleet.project.models / fault))
    )
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 2
    assert client.get_model_version_by_alias(fault, "champion").version == "2"
    _same_story(fleet, fault)


def _quietly(fleet: Fleet, model: str) -> bool:
    """Whether the run has ended; a component that is coming back can't be asked yet."""
    import httpx

    from evergreen.airflow_client import AirflowError

    try:
        return fleet.ended(model, "second")
    except (AirflowError, httpx.HTTPError, UnavailableError):
        return False


#: What differs between two models by their names, or is measured.
_IDS = re.compile(r"m-[0-9a-f]{32}|[0-9a-f]{64}|[0-9a-f]{32}|\b[0-9a-f]{12}\b|models:/[^ \"]*")
_MEASURED = ("latency", "peak memory", "memory", "load_seconds")


def _same_story(fleet: Fleet, model: str) -> None:
    """The ledger says of a model what it says of the calm one; a difference is shown where it is."""
    told, calm = _story(fleet, model), _story(fleet, CALM)
    for mine, theirs in zip(told, calm, strict=False):
        pairs = enumerate(zip(mine, theirs, strict=False))
        start = max(0, next((at for at, (a, b) in pairs if a != b), 0) - 150)
        assert mine[start : start + 400] == theirs[start : start + 400], mine.partition(":")[0]
    assert told == calm


def _story(fleet: Fleet, model: str) -> list[str]:
    """Every row that the ledger has of a model, with ids and digests left out."""
    with fleet.it.workspace.ledger.read() as session:
        return sorted(
            f"{table.__tablename__}: {_row(row, model)}"
            for table in Table.__subclasses__()
            for row in session.scalars(sa.select(table).filter_by(model=model))
        )


def _row(row: Table, model: str) -> str:
    # A sequence counts the rows of all models.
    left_out = {"id", "recorded_at", "sequence"} | {
        k.parent.name for k in row.__table__.foreign_keys
    }
    values = {c.name: getattr(row, c.name) for c in row.__table__.columns if c.name not in left_out}
    text = json.dumps(_unmeasured(values), sort_keys=True, default=str)
    return _IDS.sub("<id>", text).replace(model, "<model>")


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        if str(value.get("rule", value.get("name", ""))).startswith(_MEASURED):
            return "measured"
        return {k: _unmeasured(v) for k, v in value.items() if not k.startswith(_MEASURED)}
    if isinstance(value, list):
        return [_unmeasured(each) for each in value]
    return value
