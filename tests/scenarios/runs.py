"""DAG runs in this process: Airflow's own `DAG.test`, with the run's type and the logs by task."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from airflow.sdk import DAG

BUNDLE = "dags-folder"


@dataclass(frozen=True)
class Run:
    """What is left of a DAG run.

    :ivar states: task → state.
    :ivar tries: task → how often it was tried.
    :ivar logs: task → what it logged, one event a line.
    """

    run_id: str
    state: str
    states: dict[str, str]
    tries: dict[str, int]
    logs: dict[str, str] = field(repr=False)


def run_dag(folder: Path, dag_id: str, kind: str, conf: Mapping[str, Any], home: Path) -> Run:
    """Run a DAG of ``folder`` as a run of type ``kind``; retries come without their delay."""
    with _deployed(folder, dag_id, home), _created(kind), _task_logs() as logs:
        run = _dag(folder, dag_id).test(logical_date=None, run_conf=dict(conf))
    tasks = run.get_task_instances()
    return Run(
        run_id=run.run_id, state=str(run.state), states={t.task_id: str(t.state) for t in tasks},
        tries={t.task_id: t.try_number for t in tasks},
        logs={task: "\n".join(lines) for task, lines in logs.items()},
    )  # fmt: skip


def begin(folder: Path, dag_id: str, home: Path) -> str:
    """A run that stays ``running``: it is created, and no task of it starts. Returns its id."""
    created: list[str] = []

    def stop(run: Any) -> None:
        created.append(run.run_id)
        raise _BegunError

    with suppress(_BegunError), _deployed(folder, dag_id, home), _created("asset_triggered", stop):
        # With a date: `DAG.test` deletes an undated run of the DAG before it makes another one.
        _dag(folder, dag_id).test(logical_date=datetime(2000, 1, 1, tzinfo=UTC))
    return created[0]


class _BegunError(Exception):
    pass


def _dag(folder: Path, dag_id: str) -> DAG:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(folder, bundle_path=folder, bundle_name=BUNDLE)
    if dag_id not in bag.dags:
        raise AssertionError(f"no {dag_id}: {bag.import_errors}")
    dag = bag.dags[dag_id]
    for task in dag.tasks:
        task.retry_delay = task.max_retry_delay = timedelta(0)
    return dag


@contextmanager
def _deployed(folder: Path, dag_id: str, home: Path) -> Iterator[None]:
    """Airflow's only bundle is ``folder``; its metadata is made once a session.

    `DAG.test` reads and saves all of a bundle's DAGs; those of other files than the DAG's stay out.
    """
    file = f"{dag_id.rpartition('.')[2]}.py"
    if (folder / file).exists():
        (folder / ".airflowignore").write_text(f"*.py\n!{file}\n")
    bundle = {
        "name": BUNDLE,
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(folder)},
    }
    settings = {
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
        "EVERGREEN_HOME": str(home),
    }
    _migrate()
    with patch.dict(os.environ, settings):
        yield


@cache
def _migrate() -> None:
    from airflow.utils import db

    db.initdb()


@contextmanager
def _created(kind: str, then: Callable[[Any], None] = lambda run: None) -> Iterator[None]:
    """Runs are of type ``kind``. `DAG.test` makes manual ones, which are decided on differently."""
    from airflow.models import dagrun

    create = dagrun.get_or_create_dagrun

    def create_as(**given: Any) -> Any:
        run = create(**given)
        run.run_type = kind
        given["session"].commit()
        then(run)
        return run

    with patch.object(dagrun, "get_or_create_dagrun", create_as):
        yield


@contextmanager
def _task_logs() -> Iterator[dict[str, list[str]]]:
    """What is logged between the lines with which `DAG.test` opens and ends a task.

    Tasks log through structlog, libraries and `DAG.test` itself through the standard library.
    """
    from structlog.processors import format_exc_info
    from structlog.testing import capture_logs

    found: dict[str, list[str]] = defaultdict(list)
    with capture_logs([format_exc_info]) as entries:
        handler = logging.Handler()
        handler.emit = lambda record: entries.append({"event": record.getMessage()})  # type: ignore[method-assign]  # a handler that only collects
        logging.getLogger().addHandler(handler)
        try:
            yield found
        finally:
            logging.getLogger().removeHandler(handler)
    task = ""
    for entry in entries:
        event = str(entry["event"])
        if marked := re.match(r"\[DAG TEST\] (starting|end task) task_id=(\S+)", event):
            task = marked[2] if marked[1] == "starting" else ""
        found[task] += [
            event,
            *(str(entry[key]) for key in ("reason", "exception") if key in entry),
        ]
