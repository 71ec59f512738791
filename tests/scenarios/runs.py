"""DAG runs in this process: Airflow's own `DAG.test`, with the run's type and the logs by task."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch


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
    from airflow.dag_processing.dagbag import DagBag

    bundle = {
        "name": "dags-folder",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(folder)},
    }
    settings = {
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
        "EVERGREEN_HOME": str(home),
    }
    _database()
    with patch.dict(os.environ, settings), _of_type(kind), _task_logs() as logs:
        bag = DagBag(folder, bundle_path=folder, bundle_name="dags-folder")
        if dag_id not in bag.dags:
            raise AssertionError(f"no {dag_id}: {bag.import_errors}")
        dag = bag.dags[dag_id]
        for task in dag.tasks:
            task.retry_delay, task.max_retry_delay = timedelta(0), timedelta(0)
        run = dag.test(logical_date=None, run_conf=dict(conf))
    tasks = run.get_task_instances()
    return Run(
        run_id=run.run_id, state=str(run.state), states={t.task_id: str(t.state) for t in tasks},
        tries={t.task_id: t.try_number for t in tasks},
        logs={task: "\n".join(lines) for task, lines in logs.items()},
    )  # fmt: skip


@cache
def _database() -> None:
    """Airflow's metadata, once a session."""
    from airflow.utils import db

    db.initdb()


@contextmanager
def _of_type(kind: str) -> Iterator[None]:
    """`DAG.test` starts manual runs only, and a manual run is decided on differently."""
    from airflow.models import dagrun

    create = dagrun.get_or_create_dagrun

    def create_as(**given: Any) -> Any:
        run = create(**given)
        run.run_type = kind
        given["session"].commit()
        return run

    with patch.object(dagrun, "get_or_create_dagrun", create_as):
        yield


@contextmanager
def _task_logs() -> Iterator[dict[str, list[str]]]:
    """What is logged between the lines with which `DAG.test` opens and ends a task.

    Tasks log through structlog, libraries and `DAG.test` itself through the standard library.
    """
    from structlog.testing import capture_logs

    found: dict[str, list[str]] = defaultdict(list)
    with capture_logs() as entries:
        handler = logging.Handler()
        handler.emit = lambda record: entries.append({"event": record.getMessage()})  # type: ignore[method-assign]
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
        said = [event, *(str(v) for k, v in entry.items() if k in {"error", "exc_info", "reason"})]
        found[task].append(" ".join(said))
