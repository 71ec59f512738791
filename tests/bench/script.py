"""A DAG run by a plain script: each task's own ``execute``, one after the other, no Airflow around.

What a task costs here is what its stage costs: reading its inputs, the libraries' work, saving
the result. Everything else that a DAG run takes is Airflow's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from evergreen.airflow_client import Json

if TYPE_CHECKING:
    from airflow.sdk import DAG, BaseOperator

#: Long after all data: everything that has landed is taken.
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Script:
    """One run of one DAG.

    :ivar said: task → what it left for others, by XCom key.
    :ivar skipped: the tasks that others have skipped.
    """

    project: Path
    family: str
    run_id: str
    said: dict[str, Json] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)

    @cached_property
    def dag(self) -> DAG:
        """The DAG, parsed as a task parses it."""
        from airflow.dag_processing.dagbag import BundleDagBag

        dags = self.project / "dags"
        file = str(dags / f"{self.family}.py")
        bag = BundleDagBag(
            file, safe_mode=False, load_op_links=False, bundle_path=dags, bundle_name="dags-folder"
        )
        if bag.import_errors:
            raise RuntimeError(f"{self.family}.py can't be read: {bag.import_errors}")
        return next(iter(bag.dags.values()))

    def run(self) -> Iterator[tuple[str, float]]:
        """Execute every task that isn't skipped; yield its id and its seconds."""
        tasks = self.dag.topological_sort()  # type: ignore[no-untyped-call]  # Airflow's
        for task in tasks:
            if task.task_id not in self.skipped:
                began = time.perf_counter()
                self.execute(task.task_id)
                yield task.task_id, time.perf_counter() - began

    def execute(self, task_id: str) -> None:
        """Execute one task, and keep what it said."""
        from airflow.sdk.bases.operator import ExecutorSafeguard

        task: Any = self.dag.task_dict[task_id]
        pushed: Json = {}
        for name in task.template_fields:
            source = getattr(getattr(task, name, None), "operator", None)
            if source is not None:
                setattr(task, name, self.said[source.task_id]["return_value"])
        task._set_state_to_skipped = self._skip
        ExecutorSafeguard.tracker.set(task)
        result = task.execute(self._context(task, pushed))
        self.said[task_id] = {**pushed, "return_value": result}

    def _skip(self, task_ids: list[str], map_index: int) -> None:
        """What follows a skipped task is skipped too, but for the teardown."""
        for task_id in task_ids:
            after = self.dag.task_dict[task_id].get_flat_relatives(upstream=False)
            self.skipped |= {task_id, *(it.task_id for it in after if not it.is_teardown)}

    def _context(self, task: BaseOperator, pushed: Json) -> Any:
        """As much of a context as stages look at."""

        def push(key: str, value: Any) -> None:
            pushed[key] = value

        def pull(task_ids: list[str], key: str) -> list[Any]:
            return [self.said.get(task_id, {}).get(key) for task_id in task_ids]

        ti = SimpleNamespace(
            map_index=-1, xcom_push=push, xcom_pull=pull, get_dagrun_state=lambda *_: "running"
        )
        run = SimpleNamespace(run_id=self.run_id, run_type="manual", run_after=NOW)
        params = self.dag.params.dump()
        return {"ti": ti, "dag": self.dag, "dag_run": run, "task": task, "params": params}
