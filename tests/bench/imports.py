"""Imports that tasks of one retrain run pay for, each forked from a process warm like a scheduler.

The process imports what Airflow's scheduler and `WarmLocalExecutor` import, and uses none of it;
each task runs in a child of its own that parses the DAG file and executes the operator, as
Airflow's tasks do. The first month gives the model a champion, the second month is measured.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from tests.bench.figures import Figure
from tests.bench.flights import FOLDER, MONTHS, land, project
from tests.bench.recording import Import, named, record, recorded
from tests.bench.script import Script


def measure() -> Iterator[Figure]:
    """The seconds and modules of imports, in all and by task."""
    home, file = FOLDER / "imports", FOLDER / "imports.jsonl"
    home.mkdir(parents=True)
    os.environ["EVERGREEN_HOME"] = str(home)
    began = time.perf_counter()
    warm_up()
    warm = time.perf_counter() - began
    record(file)
    for key in MONTHS[:2]:
        in_child(lambda key=key: land(home, key))
        paid = dict(run("ingest", key, file)) | dict(run("retrain", key, file))
    every = list(chain.from_iterable(paid.values()))
    vendors = sorted(set().union(*(it.vendors for it in every)))
    yield Figure("preload, once", warm, "s", detail="what no task pays for")
    yield Figure(
        "vendors imported in tasks", len(vendors), "", 0, detail=", ".join(vendors) or "none"
    )
    yield Figure("imports in tasks, all", sum(it.seconds for it in every), "s", 0.5)
    for task, imports in paid.items():
        yield Figure(
            f"  {task}", 1000 * sum(it.seconds for it in imports), "ms", detail=named(imports)
        )


def warm_up() -> None:
    """Import what a scheduler has imported when it forks."""
    import airflow.jobs.scheduler_job_runner

    from evergreen.executors import PRELOAD, lifecycle_modules, preload

    preload([*PRELOAD, *lifecycle_modules()])


def run(family: str, key: str, file: Any) -> Iterator[tuple[str, list[Import]]]:
    """Run a DAG's tasks in children; yield each with what it imported."""
    script = Script(project("warm"), family, f"bench__{key}")
    for task_id in in_child(lambda: [it.task_id for it in script.dag.topological_sort()]):
        if task_id in script.skipped:
            continue
        file.unlink(missing_ok=True)
        script.said, skipped = in_child(lambda task_id=task_id: executed(script, task_id))
        script.skipped |= set(skipped)
        yield task_id, recorded(file)


def executed(script: Script, task_id: str) -> tuple[Any, list[str]]:
    """Execute a task; what is said by now, and what is skipped."""
    script.execute(task_id)
    return script.said, sorted(script.skipped)


def in_child(work: Callable[[], Any]) -> Any:
    """What ``work`` returns, done in a forked process.

    :raises ChildProcessError: when it failed; its traceback is in the log.
    """
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.close(reader)
            with os.fdopen(writer, "w") as stream:
                json.dump(work(), stream)
            os._exit(0)
        finally:
            import traceback

            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as stream:
        answer = stream.read()
    if os.waitpid(pid, 0)[1]:
        raise ChildProcessError("a task failed; its traceback is above")
    return json.loads(answer)
