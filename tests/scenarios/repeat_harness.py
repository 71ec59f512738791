"""Run every stage of a small model's life, run it again, kill it in the middle and run it then.

``python -m tests.scenarios.repeat_harness FOLDER``, by `test_repeat`. A clean process, because a
process that has used OpenMP, DuckDB or threads can't be forked safely: this one imports what the
stages need, never uses it, and forks a child for each execution, as Airflow's warm workers do.

Which tasks there are, in which order and with which inputs, the DAG files say; they are read over
a model made here. It learns from one day to have a champion, unharmed; then a second day lands,
and each task of its life is repeated and killed. A line a task goes to stdout, and the whole
report to ``FOLDER/report.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from difflib import unified_diff
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

from tests.scenarios.state import State, capture

if TYPE_CHECKING:
    from airflow.sdk import DAG

    from evergreen.operators.base import StageOperator

PROJECT = Path(__file__).parents[2]
#: What comes first; families of DAGs that are added come after, by name.
FAMILIES = ("ingest", "retrain", "score")
DAYS = ("2026-01-01", "2026-01-02")
#: Seconds that one execution may take.
LIMIT = 90.0
#: When to kill, as shares of the time, and of the writes, that the first execution needed.
OF_TIME = (0.2, 0.5, 0.8)
OF_WRITES = (0.25, 0.5, 0.75, 1.0)
#: Kills of a task that takes long: a clean process is started for each.
LONG = 4.0
PARAMS = {"reason": "the repeat test", "tune": True}

DECLARATION = """
    name: punctuality
    task: binary_classification
    owner: {team: tests, contact: tests@example.com}
    data:
      uri: landing/departures/{partition}.parquet
      partition: day
      entities: [origin]
      label: {column: late, timestamp: label_timestamp}
    features: {module: features, service: punctuality}
    validation: {suite: expectations.json}
    training:
      estimator: sklearn.linear_model.LogisticRegression
      parameters: {max_iter: 200}
      search: {parameters: {C: [0.1, 1.0]}, candidates: 2, folds: 2}
      holdout: {length: 12h, min_rows: 100}
      refit: true
    evaluation: {primary: log_loss, metrics: [roc_auc], slices: [origin], min_slice_rows: 50}
    gate:
      {promote_when: non_inferior, margin: 0.2, resamples: 200, latency_p95_ms: 10000, memory_mb: 8192}
"""
FEATURES = """
    from datetime import timedelta
    from feast import Entity, FeatureService, FeatureView, Field, FileSource
    from feast.types import Float64
    from feast.value_type import ValueType

    LOOKBACK = timedelta(hours=3)
    origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
    traffic = FeatureView(
        name="traffic", entities=[origin], ttl=timedelta(hours=3),
        schema=[Field(name="mean_wind", dtype=Float64)],
        source=FileSource(path="traffic.parquet", timestamp_field="event_timestamp"),
    )
    punctuality = FeatureService(name="punctuality", features=[traffic])


    def prepare_traffic(raw):
        rows = raw["departures"]
        hour = rows["event_timestamp"].dt.ceil("h")
        means = rows.groupby(["origin", hour])["wind"].mean()
        return means.rename("mean_wind").reset_index()


    def prepare_requests(raw):
        return raw["departures"][["origin", "wind"]]
"""
SUITE = {
    "name": "punctuality",
    "expectations": [
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "wind"}},
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "wind", "min_value": -3.0, "max_value": 3.0},
            "meta": {"on_failure": "quarantine"},
        },
    ],
}


@dataclass(frozen=True)
class Ending:
    """What became of one execution.

    :ivar result: what the task returned: a reference.
    :ivar pushed: what it left for others besides.
    :ivar raised: how it ended when it didn't return.
    :ivar writes: files put in place and transactions committed.
    """

    result: Any = None
    pushed: Mapping[str, Any] = field(default_factory=dict)
    raised: str | None = None
    seconds: float = 0.0
    writes: int = 0

    def said(self) -> list[Any]:
        """What a repeat must say too."""
        return [self.result, dict(self.pushed), self.raised]


@dataclass
class Report:
    """How one task bore it.

    :ivar kills: the moments at which it was killed.
    :ivar differences: moment → what was different after the repeat; empty is well.
    """

    task: str
    operator: str
    seconds: float
    kills: list[str] = field(default_factory=list)
    differences: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        how = f"DIFFERS after {', '.join(self.differences)}" if self.differences else "ok"
        return f"{self.operator:<28} {self.task:<36} {self.seconds:6.2f} s {len(self.kills):2} kills  {how}"


@dataclass(frozen=True)
class Moment:
    """When to kill: after so many seconds, or instead of a write."""

    seconds: float | None = None
    write: int | None = None
    words: str = ""


class Life:
    """A model's life in ``folder``: where it lives, and what its tasks have said so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.said: dict[tuple[str, str], Ending] = {}

    def go(self, dags: Sequence[DAG], day: str) -> Iterator[tuple[DAG, StageOperator]]:
        """Land a day, then come by every task in order."""
        land(self.home, day)
        for dag in dags:
            for task in dag.topological_sort():
                yield dag, task

    def execute(
        self, dag: DAG, task: StageOperator, day: str, moment: Moment = Moment()
    ) -> Ending | None:
        """Execute a task in a process of its own.

        :returns: None when it was killed at ``moment``.
        :raises TimeoutError: when it takes longer than `LIMIT`.
        """
        answer, ready = self.folder / "answer.json", os.pipe()
        answer.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            self._in_child(dag, task, day, moment, ready, answer)
        os.close(ready[1])
        os.read(ready[0], 1)  # it leads a group of its own now, and begins
        os.close(ready[0])
        _wait(pid, moment.seconds)
        return Ending(**json.loads(answer.read_text())) if answer.exists() else None

    def _in_child(
        self, dag: DAG, task: StageOperator, day: str, moment: Moment, ready: tuple[int, int],
        answer: Path,
    ) -> NoReturn:  # fmt: skip
        try:
            os.setsid()
            log = os.open(self.folder / "log.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(ready[0])
            os.close(ready[1])
            writes = count_writes(self.home, moment.write)
            ending = self._ending(dag, task, day, writes)
            answer.write_text(json.dumps(asdict(ending)))
        except BaseException:  # noqa: BLE001 - whatever it is, the parent's code must not go on here
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0)

    def _ending(self, dag: DAG, task: StageOperator, day: str, writes: list[str]) -> Ending:
        from airflow.sdk.bases.operator import ExecutorSafeguard
        from airflow.sdk.exceptions import AirflowException

        pushed: dict[str, Any] = {}
        context = self._context(dag, task, day, pushed)
        for name in task.template_fields:
            source = getattr(getattr(task, name), "operator", None)
            if source is not None:
                setattr(task, name, self.said[dag.dag_id, source.task_id].result)
        ExecutorSafeguard.tracker.set(task)
        result, raised, began = None, None, time.perf_counter()
        try:
            result = task.execute(context)
        except AirflowException as error:
            raised = f"{type(error).__name__}: {error}"
        return Ending(result, pushed, raised, time.perf_counter() - began, len(writes))

    def _context(self, dag: DAG, task: StageOperator, day: str, pushed: dict[str, Any]) -> Any:
        """As much of a context as stages look at."""

        def pull(task_ids: Sequence[str], key: str) -> list[Any]:
            found = (self.said.get((dag.dag_id, task_id)) for task_id in task_ids)
            return [ending.pushed.get(key) for ending in found if ending]

        ti = SimpleNamespace(
            xcom_push=pushed.__setitem__, xcom_pull=pull, get_dagrun_state=lambda *_: "running"
        )
        run = SimpleNamespace(
            run_id=f"manual__{day}", run_type="manual", triggering_user_name="tester",
            run_after=datetime(2026, 2, 1, tzinfo=UTC),
        )  # fmt: skip
        params = {**dag.params.dump(), **{k: v for k, v in PARAMS.items() if k in dag.params}}
        return {"ti": ti, "dag": dag, "dag_run": run, "task": task, "params": params}


def count_writes(home: Path, stop_at: int | None) -> list[str]:
    """Note each file put in place and each transaction, and die instead of the one ``stop_at``."""
    from sqlalchemy import Engine, event

    seen: list[str] = []

    def note(what: str) -> None:
        seen.append(what)
        if len(seen) == stop_at:
            os.killpg(0, signal.SIGKILL)

    def audit(name: str, arguments: tuple[Any, ...]) -> None:
        if name in {"os.rename", "shutil.copyfile"} and str(arguments[1]).startswith(str(home)):
            note(f"{name} {arguments[1]}")

    sys.addaudithook(audit)
    event.listen(Engine, "commit", lambda connection: note("commit"))
    return seen


def _wait(pid: int, seconds: float | None) -> None:
    """Wait for a child; kill it with all that it started after ``seconds``.

    :raises TimeoutError: when it didn't end within `LIMIT`, without having been told to.
    """
    deadline = time.monotonic() + (LIMIT if seconds is None else seconds)
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if (left := deadline - time.monotonic()) <= 0:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if seconds is None:
                raise TimeoutError(f"no end within {LIMIT:g} s")
            return
        time.sleep(min(0.002, left))


def examine(life: Life, dag: DAG, task: StageOperator, day: str) -> Report:
    """Execute a task, again, and then after each kill from where it had begun."""
    before = life.folder / "before"
    _copy(life.home, before)
    first = _certain(life.execute(dag, task, day))
    after, report = capture(life.home), Report(task.task_id, type(task).__name__, first.seconds)
    report.task = f"{dag.dag_id.partition('.')[2]}.{task.task_id}"
    again = _certain(life.execute(dag, task, day))
    _compare(
        report, "a repeat",
        [*after.literal(), *map(str, first.said())],
        [*capture(life.home).literal(), *map(str, again.said())],
    )  # fmt: skip
    done = life.folder / "done"
    _copy(life.home, done)
    expected = after.canonical(*first.said())
    for moment in moments(first):
        _copy(before, life.home)
        if life.execute(dag, task, day, moment) is not None:
            continue  # it was quicker this time: nothing was interrupted
        report.kills.append(moment.words)
        healed = _certain(life.execute(dag, task, day))
        _compare(report, moment.words, expected, capture(life.home).canonical(*healed.said()))
    _copy(done, life.home)
    life.said[dag.dag_id, task.task_id] = first
    return report


def moments(first: Ending) -> Iterator[Moment]:
    """When to kill a task of which one execution is known."""
    for share in OF_TIME:
        yield Moment(seconds=share * first.seconds, words=f"a kill at {share:.0%} of its time")
    numbers = (
        {max(1, round(share * first.writes)) for share in OF_WRITES} if first.writes else set()
    )
    for number in sorted(numbers):
        yield Moment(write=number, words=f"a kill at write {number} of {first.writes}")


def _compare(report: Report, moment: str, expected: list[str], found: list[str]) -> None:
    lines = unified_diff(expected, found, "run once", moment, n=0, lineterm="")
    if different := [line for line in lines if not line.startswith("@@")]:
        report.differences[moment] = different


def _certain(ending: Ending | None) -> Ending:
    if ending is None:
        raise RuntimeError("a task ended in an unexpected way; its traceback is in log.txt")
    return ending


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def land(home: Path, day: str) -> None:
    """A day of departures: later with more wind, from three airports, one of them windy.

    Written in a child, as anything that uses a library is.
    """
    if (pid := os.fork()) == 0:
        try:
            _write_day(home / "landing" / "departures" / f"{day}.parquet", day)
        finally:
            os._exit(0)
    _wait(pid, None)


def _write_day(target: Path, day: str) -> None:
    import numpy as np
    import pandas as pd

    rng, count = np.random.default_rng(int(day[-2:])), 1440
    when = pd.date_range(day, periods=count, freq="1min", tz="UTC").as_unit("us")
    wind, origin = rng.normal(size=count).clip(-2.9, 2.9), rng.choice(["EWR", "JFK", "LGA"], count)
    late = wind + (origin == "LGA") + rng.normal(scale=0.7, size=count) > 0.5
    wind[rng.choice(count, 3)] = 9.0  # set aside by the suite
    target.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(
        {
            "event_timestamp": when,
            "origin": origin,
            "wind": wind,
            "late": late.astype("int64"),
            "label_timestamp": when + pd.Timedelta(minutes=30),
        }
    ).to_parquet(target, index=False)


def make_project(folder: Path) -> list[DAG]:
    """The DAGs of this repository over a model made here, in the order of a model's life."""
    from airflow.dag_processing.dagbag import DagBag

    model = folder / "include" / "models" / "punctuality"
    model.mkdir(parents=True)
    (model / "model.yaml").write_text(dedent(DECLARATION))
    (model / "features.py").write_text(dedent(FEATURES))
    (model / "expectations.json").write_text(json.dumps(SUITE))
    shutil.copytree(PROJECT / "dags", folder / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    bag = DagBag(folder / "dags")
    if bag.import_errors:
        raise RuntimeError(f"the DAGs can't be read: {bag.import_errors}")
    known = {family: place for place, family in enumerate(FAMILIES)}

    def place(dag: DAG) -> tuple[int, str]:
        return known.get(dag.dag_id.partition(".")[2], len(known)), dag.dag_id

    return sorted(bag.dags.values(), key=place)


def discover() -> list[str]:
    """The names of all operators of the package."""
    import pkgutil
    from importlib import import_module

    import evergreen.operators
    from evergreen.operators.base import StageOperator

    for module in pkgutil.walk_packages(evergreen.operators.__path__, "evergreen.operators."):
        import_module(module.name)
    found: list[type[StageOperator]] = [StageOperator]
    for kind in found:
        found += kind.__subclasses__()
    return sorted({kind.__name__ for kind in found[1:]})


def main(folder: Path) -> None:
    """Live, repeat, kill; report."""
    from evergreen.executors import PRELOAD, lifecycle_modules, preload

    preload([*PRELOAD, *lifecycle_modules(), "airflow.dag_processing.dagbag"])
    operators, dags = discover(), make_project(folder)
    life, (first_day, second_day) = Life(folder), DAYS
    for dag, task in life.go(
        [d for d in dags if d.dag_id.endswith((".ingest", ".retrain"))], first_day
    ):
        life.said[dag.dag_id, task.task_id] = _certain(life.execute(dag, task, first_day))
    life.said.clear()
    reports = []
    for dag, task in life.go(dags, second_day):
        reports.append(examine(life, dag, task, second_day))
        print(reports[-1], flush=True)  # noqa: T201
    raised = {
        f"{dag}.{task}": said.raised for (dag, task), said in life.said.items() if said.raised
    }
    promotions = capture(life.home).rows["ledger"]["promotions"]
    document = {
        "operators": operators,
        "reports": [asdict(report) for report in reports],
        "raised": raised,
        "promotions": [row["position"] for row in promotions],
    }
    (folder / "report.json").write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
