"""A real Airflow tells what it did: OpenLineage's events in a file, StatsD's metrics over UDP.

One model goes through two months and a rollback; what is asserted holds for every task that ran.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from evergreen import keeper
from evergreen.airflow_client import AirflowClient
from evergreen.ledger import records
from evergreen.standalone import Standalone
from tests.scenarios.project import Project, month

pytestmark = [pytest.mark.minutes(2), pytest.mark.integration, pytest.mark.timeout(600)]

PLUGINS = Path(keeper.__file__).parents[1]
LIMIT = 240.0
GAUGE = re.compile(r"^airflow\.(evergreen\.\w+\.\w+)((?:,\w+=[\w.]+)*):([\d.e+-]+)\|g$")
# Once through everything that has to do with data; `conclude` is about the run, not about data.
TASKS = {
    *(f"ingest.{task}" for task in ["ingest"]),
    *(
        f"retrain.{task}"
        for task in [
            "arbitrate", "extract", "validate_data", "build_features", "train", "evaluate",
            "check_infrastructure", "gate", "promote",
        ]
    ),
    *(f"score.{task}" for task in ["extract", "validate_data", "build_features", "score"]),
    *(
        f"monitor.{task}"
        for task in ["join_labels", "detect_drift", "measure_performance", "raise_signals"]
    ),
    "rollback.roll_back",
}  # fmt: skip


class Receiver:
    """StatsD's end: a UDP socket of loopback, and every gauge that came."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def _receive(self) -> None:
        while (line := self._socket.recv(65536)) != b"stop":
            self.lines += line.decode().splitlines()

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"stop", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def gauges(self) -> dict[tuple[str, str], list[float]]:
        """Name and tags → values, in order."""
        found: dict[tuple[str, str], list[float]] = {}
        for match in filter(None, map(GAUGE.match, self.lines)):
            found.setdefault((match[1], match[2].lstrip(",")), []).append(float(match[3]))
        return found


@dataclass(frozen=True)
class Told:
    """What was told, of all tasks that ended well: task → its last event with a document."""

    project: Project
    events: dict[str, dict[str, Any]]
    history: list[dict[str, Any]] = field(repr=False)
    gauges: dict[tuple[str, str], list[float]] = field(repr=False)
    logs: dict[str, str] = field(repr=False)


def live(client: AirflowClient, project: Project, key: str) -> str:
    """Land a month and start ingest; return the run that retrained, once all has ended."""
    before = len(project.history())
    project.land(**{f"m{key.replace('-', '_')}": month(key)})
    client.trigger("example.ingest", f"land__{key}")
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        with project.workspace.ledger.read() as session:
            busy = records.in_flight(session, project.name)
        made = [entry for entry in project.history()[before:] if entry["promotion"]]
        if made and not busy:
            run_id = str(made[-1]["decision"].run_id)
            client.wait_for_run("example.retrain", run_id, LIMIT)
            return run_id
        time.sleep(0.5)  # between looks at a run that takes seconds
    raise AssertionError(f"nothing was promoted for {key} within {LIMIT:g} s: {project.history()}")


def settled(file: Path, last: str) -> list[dict[str, Any]]:
    """All events, once the last task has told that it ended: Airflow knows of that before."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        events = [json.loads(line) for line in whole]
        if any(e["job"]["name"] == last and e["eventType"] == "COMPLETE" for e in events):
            return events
        time.sleep(0.2)  # between looks at a file
    raise AssertionError(f"{last} has not told that it ended: {file.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("observability")
    # 3600 an hour is 1 a second: what a task costs is the seconds it takes.
    compute = {"train": {"price": 3600}, "evaluate": {"price": 3600}}
    project = Project.create(folder / "project", compute=compute)
    receiver, file = Receiver(), folder / "lineage.jsonl"
    transport = {"type": "file", "log_file_path": str(file), "append": True}
    extra = {
        "EVERGREEN_HOME": str(project.home),
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
        "AIRFLOW__OPENLINEAGE__NAMESPACE": "tests",
        "AIRFLOW__METRICS__STATSD_ON": "True",
        "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
        "AIRFLOW__METRICS__STATSD_PORT": str(receiver.port),
        "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True",
    }
    try:
        dags, home = project.folder / "dags", folder / "airflow"
        with (
            Standalone(home, dags=dags, plugins=PLUGINS, extra=extra) as airflow,
            airflow.client() as client,
        ):
            for family in ("ingest", "score", "monitor", "retrain", "rollback"):
                client.wait_for_dag(f"example.{family}", 120)
            live(client, project, "2024-01")
            run_id = live(client, project, "2024-02")
            tasks = ("train", "conclude")
            logs = {task: client.log("example.retrain", run_id, task) for task in tasks}
            client.trigger(
                "example.rollback", "back", {"reason": "a test", "version": "1", "force": True}
            )
            ended = client.wait_for_run("example.rollback", "back", LIMIT)
            assert ended["state"] == "success", client.log("example.rollback", "back", "roll_back")
            history = settled(file, "example.rollback.roll_back")
        yield Told(project, last_of(history), history, receiver.gauges(), logs)
    finally:
        receiver.close()


def last_of(history: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Task → its last event that has a document."""
    return {
        event["job"]["name"].removeprefix("example."): event
        for event in history
        if event["eventType"] == "COMPLETE" and facet(event).get("digest")
    }


def facet(event: dict[str, Any]) -> dict[str, Any]:
    """What the stage says of itself."""
    return dict(event["run"]["facets"].get("evergreen", {}))


def named(datasets: list[dict[str, Any]]) -> dict[str, str | None]:
    """Dataset → version."""
    return {
        f"{data['namespace']}:{data['name']}": data["facets"]
        .get("version", {})
        .get("datasetVersion")
        for data in datasets
    }


def test_every_task_tells_the_document_it_wrote_by_its_digest(told: Told) -> None:
    assert set(told.events) >= TASKS, sorted(TASKS - set(told.events))
    for task, event in told.events.items():
        said, first = facet(event), event["outputs"][0]
        version = first["facets"]["version"]["datasetVersion"]
        assert said["model"] == "example"
        assert said["digest"] == version, task
        told.project.workspace.store.get_document(f"file://{first['name']}", version)  # or raises


def test_what_a_task_was_given_is_what_another_wrote(told: Told) -> None:
    written: dict[str, set[str | None]] = {}
    for event in told.history:
        for name, version in named(event["outputs"]).items():
            written.setdefault(name, set()).add(version)
    given = 0
    for task, event in told.events.items():
        for name, version in named(event["inputs"]).items():
            if "/documents/" in name or "/objects/" in name or "/tables/" in name:
                assert version in written[name], f"{task} read {name}, which nobody wrote"
                given += 1
    assert given > 20


def test_a_version_is_traced_back_to_the_files_that_had_landed(told: Told) -> None:
    sources: dict[str, set[str]] = {}
    for event in told.history:
        for name in named(event["outputs"]):
            sources.setdefault(name, set()).update(named(event["inputs"]))
    reached, frontier = set(), {"models:example/2"}
    while frontier:
        reached |= frontier
        frontier = {up for name in frontier for up in sources.get(name, ())} - reached
    landed = {name for name in reached if "/landing/" in name}
    assert {name.rpartition("/")[2] for name in landed} == {"2024-01.parquet", "2024-02.parquet"}


def test_rows_and_conclusions_are_facets(told: Told) -> None:
    events = told.events
    assert facet(events["retrain.arbitrate"])["conclusion"] == "retrain"
    assert facet(events["retrain.gate"])["conclusion"] == "promote"
    assert facet(events["rollback.roll_back"])["conclusion"] == "version 1 is live again"
    rows = {
        output["outputFacets"]["outputStatistics"]["rowCount"]
        for output in events["score.score"]["outputs"]
        if "outputStatistics" in output.get("outputFacets", {})
    }
    assert rows == {800}
    assets = named(events["ingest.ingest"]["outputs"])
    assert "x-evergreen://example:partitions" in assets, "outlets are told beside the datasets"


def test_stages_are_measured_and_a_price_makes_a_cost(told: Told) -> None:
    tags = "model=example,stage=train"
    for name in ("seconds", "cpu_seconds", "peak_mb", "rows", "cost"):
        assert (f"evergreen.stage.{name}", tags) in told.gauges, sorted(told.gauges)
    seconds = told.gauges["evergreen.stage.seconds", tags][-1]
    cost = told.gauges["evergreen.stage.cost", tags][-1]
    assert seconds == pytest.approx(cost, rel=1e-4)
    assert 0.01 < seconds < 120
    assert 50 < told.gauges["evergreen.stage.peak_mb", tags][-1] < 8000
    assert told.gauges["evergreen.stage.rows", tags][-1] > 300
    stages = {key[1].rpartition("=")[2] for key in told.gauges if "stage=" in key[1]}
    assert stages >= {"ingest", "extract", "score", "monitor", "gate", "promote", "roll_back"}
    assert ("evergreen.stage.cost", "model=example,stage=gate") not in told.gauges
    (line,) = (line for line in told.logs["train"].splitlines() if "used: " in line)
    assert re.search(r"CPU [\d.]+ s, peak memory \d+ MB.*rows [\d,]+, cost about [\d.]+", line)
