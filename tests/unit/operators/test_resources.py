"""What tasks used goes to Airflow's metrics, and what they cost is summed up over a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.observability import stats

from evergreen.declaration import Declaration
from evergreen.lifecycle.resources import Meter, Usage
from evergreen.operators.resources import COST, account, run_cost
from tests.scenarios.project import Project


class Task:
    """What Airflow gives a task: its state, its XComs, those of the run."""

    def __init__(self, task_id: str, xcoms: dict[tuple[str, str], Any]) -> None:
        self.task_id, self.xcoms, self.state = task_id, xcoms, dict[str, Any]()
        self.context: Any = {
            "ti": self,
            "task_state_store": SimpleNamespace(get=self.state.get, set=self.state.__setitem__),
            "dag": SimpleNamespace(task_ids=["train", "evaluate", "gate", "conclude"]),
        }

    def xcom_push(self, *, key: str, value: Any) -> None:
        self.xcoms[self.task_id, key] = json.loads(json.dumps(value))

    def xcom_pull(self, *, task_ids: list[str], key: str) -> list[Any]:
        return [self.xcoms.get((task, key)) for task in task_ids]


class Hour(Meter):
    """A task that took an hour."""

    def read(self) -> Usage:
        return Usage(3600.0, 7200.0, 512.0, 900.0)


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, dict[str, str]]]:
    """What was emitted, at the edge of Airflow's own."""
    found: list[tuple[str, float, dict[str, str]]] = []
    monkeypatch.setattr(
        stats, "gauge", lambda name, value, *, tags: found.append((name, value, tags))
    )
    return found


@pytest.fixture
def priced(tmp_path: Path) -> Declaration:
    compute = {"train": {"price": 2.0}, "evaluate": {"price": 0.5}, "gate": {"queue": "small"}}
    return Project.create(tmp_path, compute=compute).declaration


def test_a_stage_without_a_price_is_measured_and_costs_nothing(
    priced: Declaration, gauges: list[Any]
) -> None:
    gate = Task("gate", {})
    line = account(Hour(), gate.context, priced, "gate", rows=12)
    assert line == (
        "used: 3600.0 s, CPU 7200.0 s, peak memory 512 MB and a child's 900 MB, rows 12"
    )
    tags = {"model": "example", "stage": "gate"}
    assert gauges == [
        ("evergreen.stage.seconds", 3600.0, tags),
        ("evergreen.stage.cpu_seconds", 7200.0, tags),
        ("evergreen.stage.peak_mb", 900.0, tags),
        ("evergreen.stage.rows", 12, tags),
    ]
    assert (gate.state, gate.xcoms) == ({}, {})


def test_tries_add_up_and_a_run_is_the_sum_of_its_tasks(
    priced: Declaration, gauges: list[Any]
) -> None:
    xcoms: dict[tuple[str, str], Any] = {}
    train, evaluate = Task("train", xcoms), Task("evaluate", xcoms)
    assert account(Hour(), train.context, priced, "train").endswith("cost about 2 at 2 an hour")
    xcoms.clear()  # Airflow does, before it tries again
    assert "cost about 4 at 2" in account(Hour(), train.context, priced, "train")
    account(Hour(), evaluate.context, priced, "evaluate")
    assert xcoms["train", COST] == {"task": "train", "cost": 4.0}
    said = run_cost(Task("conclude", xcoms).context, priced)
    assert said == "cost of this run: about 4.5 (train 4, evaluate 0.5)"
    assert gauges[-1] == ("evergreen.run.cost", 4.5, {"model": "example"})


def test_what_another_engine_bills_is_counted_instead(
    priced: Declaration, gauges: list[Any]
) -> None:
    line = account(Hour(), Task("train", {}).context, priced, "train", billed=1800.0)
    assert line.endswith("cost about 1 at 2 an hour")
    assert ("evergreen.stage.cost", 1.0, {"model": "example", "stage": "train"}) in gauges


def test_a_bill_of_all_jobs_is_not_added_to_an_earlier_one(
    priced: Declaration, gauges: list[Any]
) -> None:
    """A task that is cleared sums up the same jobs again, and perhaps another."""
    train = Task("train", {})
    for billed, cost in [(None, "2"), (1800.0, "1"), (1800.0, "1"), (5400.0, "3")]:
        line = account(Hour(), train.context, priced, "train", billed=billed)
        assert line.endswith(f"cost about {cost} at 2 an hour")
    assert train.xcoms["train", COST] == {"task": "train", "cost": 3.0}


def test_a_run_that_trained_nothing_costs_nothing(priced: Declaration, gauges: list[Any]) -> None:
    said = run_cost(Task("conclude", {}).context, priced)
    assert said == "cost of this run: about 0 (no task with a price has run)"


def test_without_any_price_nothing_is_said_of_cost(tmp_path: Path, gauges: list[Any]) -> None:
    free = Project.create(tmp_path).declaration
    assert run_cost(Task("conclude", {}).context, free) is None
    assert gauges == []


#: As Airflow's task runner does it: metrics are set up in the task's process, and sent at its end.
TASK = """\
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils

stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)

from evergreen.lifecycle.resources import Usage
from evergreen.operators import resources

resources._emit(Usage(3.5, 2.5, 512.0, 900.0), "example", "train", rows=7, cost=None)
"""


class Collector(BaseHTTPRequestHandler):
    """OpenTelemetry's end: OTLP over HTTP, as a collector takes it."""

    bodies: list[bytes]

    def do_POST(self) -> None:
        if self.path == "/v1/metrics":
            self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def collected(bodies: list[bytes]) -> dict[str, tuple[float, dict[str, str]]]:
    """Gauge → its value and attributes."""
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as otlp

    found = {}
    for body in bodies:
        for resource in otlp.ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for metric in (each for scope in resource.scope_metrics for each in scope.metrics):
                for point in metric.gauge.data_points:
                    tags = {pair.key: pair.value.string_value for pair in point.attributes}
                    found[metric.name] = (point.as_double or float(point.as_int), tags)
    return found


def test_opentelemetry_gets_what_a_task_used() -> None:
    bodies: list[bytes] = []
    handler = type("Kept", (Collector,), {"bodies": bodies})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/v1/metrics"
        variables = {
            "AIRFLOW__METRICS__OTEL_ON": "True",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": address,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "NO_PROXY": "127.0.0.1",
        }
        try:
            done = subprocess.run(
                [sys.executable, "-c", TASK], env={**os.environ, **variables},
                capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
        finally:
            server.shutdown()
            thread.join(30)
    assert done.returncode == 0, done.stderr
    tags = {"model": "example", "stage": "train"}
    assert collected(bodies) == {
        "airflow.evergreen.stage.seconds": (3.5, tags),
        "airflow.evergreen.stage.cpu_seconds": (2.5, tags),
        "airflow.evergreen.stage.peak_mb": (900.0, tags),
        "airflow.evergreen.stage.rows": (7.0, tags),
    }, done.stderr
