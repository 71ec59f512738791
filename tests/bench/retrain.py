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
from tests.bench.recording import COSTLY, FILE, Import, named, recorded
from tests.bench.script import Script

IMPORTS = FOLDER / "imports.jsonl"
EXTRA = {
    "AIRFLOW__CORE__EXECUTOR": "tests.bench.recording.RecordingExecutor",
    FILE: str(IMPORTS),
    "PYTHONPATH": str(REPOSITORY),
}
#: Seconds that a DAG run may take; and after which no further month is begun.
LIMIT, ENOUGH = 180, 100


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
    def seconds(self) -> dict[str, float]:
        """Task → duration; some ran side by side."""
        return {name: task["duration"] or 0.0 for name, task in self.tasks.items()}

    @property
    def idle(self) -> float:
        """The seconds in which no task ran."""
        ran = [task for task in self.tasks.values() if task["start_date"]]
        busy, reached = 0.0, 0.0
        for start, end in sorted((_moment(t["start_date"]), _moment(t["end_date"])) for t in ran):
            busy += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return self.wall - busy


def measure() -> Iterator[Figure]:
    """Imports by task, then wall time beside the script's."""
    runs = in_airflow()
    own = by_script(list(runs))
    yield from imports(runs[MONTHS[1]])
    script = {key: sum(seconds.values()) for key, seconds in own.items()}
    for key, work in script.items():
        run = runs[key]
        yield Figure(f"{key}: DAG run", run.wall, "s", detail=f"no task ran for {run.idle:.1f} s")
        yield Figure(f"{key}: tasks", sum(run.seconds.values()), "s", detail=_listed(run.seconds))
        yield Figure(f"{key}: plain script", work, "s", detail=_listed(own[key]))
        yield Figure(f"{key}: overhead", 100 * (1 - work / run.wall), "%")
    wall = sum(runs[key].wall for key in script)
    share = 100 * (1 - sum(script.values()) / wall)
    yield Figure("overhead, together", share, "%", detail="1 - plain scripts / DAG runs")


def imports(run: Retrain) -> Iterator[Figure]:
    """What each task's own process imported anew; a worker's imports are paid once for many."""
    paid: dict[int, list[Import]] = {}
    for noted in recorded(IMPORTS):
        paid.setdefault(noted.pid, []).append(noted)
    mine = {name: paid.get(task["pid"], []) for name, task in run.tasks.items()}
    every = list(chain.from_iterable(mine.values()))
    costly = [it for it in every if it.libraries and it.seconds >= COSTLY]
    yield Figure("library imports of 10 ms or more", len(costly), "", 0, named(costly))
    yield Figure("imports in tasks, in all", 1000 * _seconds(every), "ms", 100)
    for task, imported in mine.items():
        yield Figure(f"  {task}", 1000 * _seconds(imported), "ms", detail=named(imported))


def in_airflow() -> dict[str, Retrain]:
    """Month → its retrain run; two months, and more while there is time."""
    folder, home = project("retrain"), FOLDER / "airflow-home"
    airflow = Standalone(home, dags=folder / "dags", plugins=REPOSITORY / "plugins", extra=EXTRA)
    runs: dict[str, Retrain] = {}
    began = time.monotonic()
    with airflow, airflow.client() as client:
        for family in ("ingest", "retrain"):
            client.wait_for_dag(f"{MODEL}.{family}", 60)
        for key in MONTHS:
            land(home / "evergreen", key)
            client.trigger(f"{MODEL}.ingest", key)
            client.wait_for_run(f"{MODEL}.ingest", key, LIMIT)
            client.trigger(f"{MODEL}.retrain", key)  # by hand: nothing watches the model here
            runs[key] = Retrain.read(client, client.wait_for_run(f"{MODEL}.retrain", key, LIMIT))
            if len(runs) > 1 and time.monotonic() - began > ENOUGH:
                break
    return runs


def by_script(months: list[str]) -> dict[str, dict[str, float]]:
    """Month → task → seconds, for all months but the first, which makes the process warm."""
    home, own = FOLDER / "script-home", {}
    home.mkdir()
    os.environ["EVERGREEN_HOME"] = str(home)
    for key in months:
        land(home, key)
        for family in ("ingest", "retrain"):
            own[key] = dict(Script(project("retrain"), family, f"bench__{key}").run())
    return {key: own[key] for key in months[1:]}


def _listed(seconds: dict[str, float]) -> str:
    return ", ".join(f"{task} {took:.1f}" for task, took in seconds.items() if took >= 0.1)


def _seconds(imports: list[Import]) -> float:
    return sum(it.seconds for it in imports)


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
