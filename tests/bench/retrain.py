"""One retrain run in a real Airflow: what its tasks pay for imports, and what isn't stages' work.

Airflow of `evergreen.standalone` takes the first months in turn; its forked workers note every
import (`RecordingExecutor`). Then a plain script does the same work below a fresh home: the same
operators' ``execute``, in one process that the first month has made warm. What a run took longer
than the script is overhead. Runs with a champion count, so all months but the first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

from evergreen.airflow_client import AirflowClient, Json
from evergreen.standalone import Standalone
from tests.bench.figures import Figure
from tests.bench.flights import FOLDER, MODEL, MONTHS, REPOSITORY, land, project
from tests.bench.recording import FILE, Import, named, recorded
from tests.bench.script import Script

IMPORTS = FOLDER / "imports.jsonl"
EXTRA = {
    "AIRFLOW__CORE__EXECUTOR": "tests.bench.recording.RecordingExecutor",
    FILE: str(IMPORTS),
    "PYTHONPATH": str(REPOSITORY),
}
#: Seconds that a DAG run may take.
LIMIT = 120


@dataclass(frozen=True)
class Retrain:
    """A month's retrain run as Airflow tells it."""

    wall: float
    tasks: dict[str, Json]

    @classmethod
    def read(cls, client: AirflowClient, run: Json) -> Retrain:
        """A run that has ended."""
        tasks = client.task_instances(run["dag_id"], run["dag_run_id"])
        wall = _moment(run["end_date"]) - _moment(run["start_date"])
        return cls(wall, {task["task_id"]: task for task in tasks})

    @property
    def in_tasks(self) -> float:
        """The sum of the tasks' durations; some ran side by side."""
        return sum(task["duration"] or 0.0 for task in self.tasks.values())


def measure() -> Iterator[Figure]:
    """Imports by task, then wall time beside the script's."""
    runs = in_airflow()
    own = by_script()
    yield from imports(runs[MONTHS[1]])
    shares = {key: 1 - sum(own[key].values()) / run.wall for key, run in runs.items() if key in own}
    for key, share in shares.items():
        run, seconds = runs[key], own[key]
        yield Figure(f"{key}: DAG run", run.wall, "s", detail="wall time, from Airflow's dates")
        yield Figure(f"{key}: tasks", run.in_tasks, "s", detail="the sum of their durations")
        work = ", ".join(f"{task} {took:.1f}" for task, took in seconds.items() if took >= 0.1)
        yield Figure(f"{key}: plain script", sum(seconds.values()), "s", detail=work)
        yield Figure(f"{key}: overhead", 100 * share, "%")
    yield Figure("overhead, best of these", 100 * min(shares.values()), "%", 25)


def imports(run: Retrain) -> Iterator[Figure]:
    """What each task's own process imported anew; a worker's imports are paid once for many."""
    paid: dict[int, list[Import]] = {}
    for noted in recorded(IMPORTS):
        paid.setdefault(noted.pid, []).append(noted)
    mine = {name: paid.get(task["pid"], []) for name, task in run.tasks.items()}
    every = list(chain.from_iterable(mine.values()))
    vendors = sorted(set().union(*(it.vendors for it in every)))
    yield Figure("vendors imported in tasks", len(vendors), "", 0, ", ".join(vendors) or "none")
    yield Figure("imports in tasks, in all", _seconds(every), "s", 0.5)
    for task, imported in mine.items():
        yield Figure(f"  {task}", 1000 * _seconds(imported), "ms", detail=named(imported))


def in_airflow() -> dict[str, Retrain]:
    """Month → its retrain run."""
    folder, home = project("retrain"), FOLDER / "airflow-home"
    airflow = Standalone(home, dags=folder / "dags", plugins=REPOSITORY / "plugins", extra=EXTRA)
    runs = {}
    with airflow, airflow.client() as client:
        for family in ("ingest", "retrain"):
            client.wait_for_dag(f"{MODEL}.{family}", 60)
        for key in MONTHS:
            land(home / "evergreen", key)
            client.trigger(f"{MODEL}.ingest", key)
            client.wait_for_run(f"{MODEL}.ingest", key, LIMIT)
            runs[key] = _next_retrain(client, len(runs))
    return runs


def _next_retrain(client: AirflowClient, known: int) -> Retrain:
    """The first run that trained after so many others did, once it has ended."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        ended = [run for run in client.dag_runs(f"{MODEL}.retrain") if run["end_date"]]
        read = [Retrain.read(client, run) for run in ended]
        trained = [run for run in read if run.tasks["train"]["state"] == "success"]
        if len(trained) > known:
            return trained[known]
        time.sleep(0.5)
    raise TimeoutError(f"no retrain within {LIMIT} s")


def by_script() -> dict[str, dict[str, float]]:
    """Month → task → seconds, for all months but the first, which makes the process warm."""
    home, own = FOLDER / "script-home", {}
    home.mkdir()
    os.environ["EVERGREEN_HOME"] = str(home)
    for key in MONTHS:
        land(home, key)
        for family in ("ingest", "retrain"):
            own[key] = dict(Script(project("retrain"), family, f"bench__{key}").run())
    return {key: own[key] for key in MONTHS[1:]}


def _seconds(imports: list[Import]) -> float:
    return sum(it.seconds for it in imports)


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
