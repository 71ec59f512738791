"""Run every stage of a small model's life, run it again, kill it in the middle and run it then.

``python -m tests.scenarios.repeat_harness FOLDER``, by `test_repeat`. A clean process, because a
process that has used OpenMP, DuckDB or threads can't be forked safely: this one imports what the
stages need, never uses it, and forks a child for each execution, as Airflow's warm workers do.

Which tasks there are, in which order and with which inputs, the DAG files say, so there is no
list of operators here. A line a task goes to stdout, the whole report to ``FOLDER/report.json``.

Longer than most: what is forked, killed and compared is read best in one place.
"""

from __future__ import annotations

import json
import os
import pkgutil
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from difflib import unified_diff
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

from tests.scenarios.repeat_model import DAYS, family_of, land, make_project
from tests.scenarios.state import capture

if TYPE_CHECKING:
    from airflow.sdk import DAG

    from evergreen.operators.base import StageOperator

#: Seconds that one execution may take, and after which no further task is begun.
LIMIT = 60.0
BUDGET = 420.0
#: When to kill, as shares of the time, and of the writes, that the first execution needed.
OF_TIME = (0.2, 0.5, 0.8)
OF_WRITES = (0.25, 0.5, 0.75, 0.875, 1.0)  # towards the end, results are put in place
#: A task that takes so many seconds is killed in time and at its last write only.
LONG = 4.0
#: How often a moment that came too late is brought forward.
TRIES = 4
PARAMS = {"reason": "the repeat test", "tune": True, "version": "1"}
#: Only models with replicas, a drill or AWS have these tasks: where they are repeated and killed.
ELSEWHERE = {
    "CompactLogOperator": "tests/unit/lifecycle/test_compaction.py",
    "DetectSkewOperator": "tests/unit/lifecycle/test_skew.py",
    "DrillRollbackOperator": "tests/unit/lifecycle/test_drilling.py",
    "MaterializeFeaturesOperator": "promote, whose online features are the same function's",
    "PlanDeploymentOperator": "tests/integration/test_aws.py",
    "TrainOnSageMakerOperator": "tests/integration/test_aws.py",
}


@dataclass(frozen=True)
class Ending:
    """What became of one execution.

    :ivar result: what the task returned: a reference.
    :ivar pushed: what it left for others besides.
    :ivar raised: how it ended when it didn't return.
    :ivar writes: files put in place and transactions committed.
    """

    result: Any
    pushed: Mapping[str, Any]
    raised: str | None
    seconds: float
    writes: int

    def said(self) -> list[Any]:
        """What a repeat must say too."""
        return [self.result, self.pushed, self.raised]


@dataclass(frozen=True)
class Moment:
    """When to kill: after so many seconds, or instead of a write, counted from 1."""

    words: str = "never"
    seconds: float | None = None
    write: int | None = None

    def tries(self) -> Iterator[Moment]:
        """The moment, and earlier ones for an execution that was quicker than the first."""
        yield self
        if self.seconds is not None:
            yield from (Moment(self.words, self.seconds / 2**k) for k in range(1, TRIES))


@dataclass(frozen=True)
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
        took = f"{self.seconds:6.2f} s {len(self.kills):2} kills"
        return f"{self.operator:<28} {self.task:<30} {took}  {how}"

    def compare(self, moment: str, expected: list[str], found: list[str]) -> None:
        """Note what is different."""
        lines = unified_diff(expected, found, "run once", moment, n=0, lineterm="")
        if different := [line for line in lines if not line.startswith("@@")]:
            self.differences[moment] = different


class Life:
    """A model's life in ``folder``: where it lives, and what its tasks have said so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.said: dict[tuple[str, str], Ending] = {}

    def begin(self, dags: Sequence[DAG], day: str) -> Iterator[tuple[DAG, StageOperator]]:
        """Land a day, then come by every task in order."""
        self.said.clear()
        self._fork(lambda: land(self.home, day))
        for dag in dags:
            stages = (task for task in dag.topological_sort() if _is_stage(task))
            yield from ((dag, task) for task in stages)

    def execute(
        self, dag: DAG, task: StageOperator, day: str, moment: Moment = Moment()
    ) -> Ending | None:
        """Execute a task in a process of its own; None when it was killed at ``moment``."""
        answer = self.folder / "answer.json"
        answer.unlink(missing_ok=True)

        def run() -> None:
            writes = count_writes(self.home, moment.write)
            answer.write_text(json.dumps(asdict(self._execute(dag, task, day, writes))))

        self._fork(run, moment.seconds)
        return Ending(**json.loads(answer.read_text())) if answer.exists() else None

    def whole(self, dag: DAG, task: StageOperator, day: str) -> Ending:
        """Execute a task to its end, and remember what it said."""
        ending = self.execute(dag, task, day)
        if ending is None:
            raise RuntimeError(f"{task.task_id} was killed by someone else")
        self.said[dag.dag_id, task.task_id] = ending
        return ending

    def _execute(self, dag: DAG, task: StageOperator, day: str, writes: list[str]) -> Ending:
        from airflow.sdk.bases.operator import ExecutorSafeguard
        from airflow.sdk.exceptions import AirflowException

        for name in task.template_fields:
            if source := getattr(getattr(task, name), "operator", None):
                setattr(task, name, self.said[dag.dag_id, source.task_id].result)
        pushed: dict[str, Any] = {}
        context = self._context(dag, task, day, pushed)
        ExecutorSafeguard.tracker.set(task)
        result, raised, began = None, None, time.perf_counter()
        try:
            result = task.execute(context)
        except AirflowException as error:  # skipped, refused: a result like any other
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
            dag_id=dag.dag_id, run_id=f"manual__{day}", run_type="manual",
            triggering_user_name="tester", run_after=datetime(2026, 2, 1, tzinfo=UTC),
        )  # fmt: skip
        params = {**dag.params.dump(), **{k: v for k, v in PARAMS.items() if k in dag.params}}
        return {"ti": ti, "dag": dag, "dag_run": run, "task": task, "params": params}

    def _fork(self, act: Callable[[], None], seconds: float | None = None) -> None:
        """Let a child act; kill it, and all that it has started, after ``seconds``.

        :raises RuntimeError: when the child failed.
        :raises TimeoutError: when it ran longer than `LIMIT`.
        """
        ready, begun = os.pipe()
        if (pid := os.fork()) == 0:
            self._in_child(act, begun)
        os.close(begun)
        os.read(ready, 1)  # closed when the child leads a group of its own, and begins
        os.close(ready)
        deadline = time.monotonic() + (LIMIT if seconds is None else seconds)
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.002)
        if ended == (0, 0):
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if seconds is None:
                raise TimeoutError(f"no end within {LIMIT:g} s")
        elif os.WIFEXITED(ended[1]) and os.WEXITSTATUS(ended[1]):
            said = (self.folder / "log.txt").read_text(errors="replace")
            raise RuntimeError(f"a child failed; its log ends with\n{said[-3000:]}")

    def _in_child(self, act: Callable[[], None], begun: int) -> NoReturn:
        """The child's life, of which nothing may come back into the parent's code."""
        failed = 1
        try:
            os.setsid()
            log = os.open(self.folder / "log.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(begun)
            act()
            failed = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(failed)


def count_writes(home: Path, fatal: int | None) -> list[str]:
    """Note each file put in place and each transaction, and die instead of the ``fatal`` one."""
    from sqlalchemy import Engine, event

    seen: list[str] = []

    def note(what: str) -> None:
        seen.append(what)
        if len(seen) == fatal:
            os.killpg(0, signal.SIGKILL)

    def audit(name: str, arguments: tuple[Any, ...]) -> None:
        if name in {"os.rename", "shutil.copyfile"} and str(arguments[1]).startswith(str(home)):
            note(f"{name} {arguments[1]}")

    sys.addaudithook(audit)
    event.listen(Engine, "commit", lambda _: note("commit"))
    return seen


def moments(first: Ending) -> Iterator[Moment]:
    """When to kill a task of which one execution is known."""
    for share in OF_TIME:
        yield Moment(f"a kill at {share:.0%} of its time", seconds=share * first.seconds)
    shares = OF_WRITES if first.seconds < LONG else OF_WRITES[-1:]
    for number in sorted({round(share * first.writes) for share in shares} - {0}):
        yield Moment(f"a kill at write {number} of {first.writes}", write=number)


def examine(life: Life, dag: DAG, task: StageOperator, day: str) -> Report:
    """Execute a task, again, and then after each kill from where it had begun."""
    before, done = life.folder / "before", life.folder / "done"
    _copy(life.home, before)
    first = life.whole(dag, task, day)
    after = capture(life.home)
    name = f"{family_of(dag)}.{task.task_id}"
    report = Report(name, type(task).__name__, round(first.seconds, 2))
    again = life.whole(dag, task, day)
    found = capture(life.home)
    report.compare("a repeat", after.literal(*first.said()), found.literal(*again.said()))
    _copy(life.home, done)
    expected = after.canonical(*first.said())
    for moment in moments(first):
        for earlier in moment.tries():
            _copy(before, life.home)
            if life.execute(dag, task, day, earlier) is None:
                report.kills.append(moment.words)
                healed = life.whole(dag, task, day)
                found = capture(life.home)
                report.compare(moment.words, expected, found.canonical(*healed.said()))
                break
    _copy(done, life.home)
    life.said[dag.dag_id, task.task_id] = first
    return report


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def _is_stage(task: Any) -> bool:
    """Not what only announces, nor what waits for a person."""
    from evergreen.operators.base import StageOperator

    return isinstance(task, StageOperator)


def discover() -> set[str]:
    """The names of all stage operators of the package."""
    import evergreen.operators
    from evergreen.operators.base import StageOperator

    for module in pkgutil.walk_packages(evergreen.operators.__path__, "evergreen.operators."):
        import_module(module.name)
    kinds: list[type[StageOperator]] = [StageOperator]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {kind.__name__ for kind in kinds[1:] if kind.__module__.startswith("evergreen.")}


def main(folder: Path) -> None:
    """Live a day to have a champion, unharmed; then live the next, repeated and killed."""
    from evergreen.executors import PRELOAD, lifecycle_modules, preload
    from evergreen.lifecycle import infrastructure_process

    began = time.monotonic()
    preload([*PRELOAD, *lifecycle_modules()])
    infrastructure_process.start()  # for the children, as a warm worker does
    dags = make_project(folder)
    there = {type(task).__name__ for dag in dags for task in dag.tasks}
    if lost := discover() - there - set(ELSEWHERE):
        raise SystemExit(
            f"{', '.join(sorted(lost))}: in no file of dags/, which say where a task stands and what "
            "it is given. Add it there, and it is repeated and killed like the others."
        )
    life, (first_day, second_day) = Life(folder), DAYS
    for dag, task in life.begin(
        [d for d in dags if family_of(d) in {"ingest", "retrain"}], first_day
    ):
        life.whole(dag, task, first_day)
    reports = []
    for dag, task in life.begin(dags, second_day):
        if time.monotonic() - began > BUDGET:
            raise TimeoutError(f"{BUDGET:g} s are over before {dag.dag_id}.{task.task_id}")
        reports.append(examine(life, dag, task, second_day))
        print(reports[-1], flush=True)  # noqa: T201
    document = {
        "reports": [asdict(report) for report in reports],
        "raised": {f"{d}.{t}": said.raised for (d, t), said in life.said.items() if said.raised},
        "promotions": [r["position"] for r in capture(life.home).rows["ledger"]["promotions"]],
        "scores": len(capture(life.home).rows["ledger"]["scores"]),
    }
    (folder / "report.json").write_text(json.dumps(document, indent=1))
    infrastructure_process.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
