"""A real Airflow tells what it did: OpenLineage's events in a file, StatsD's metrics over UDP.

One model goes through two months and a rollback; what is asserted holds for every task that ran.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from evergreen.airflow_client import AirflowClient
from evergreen.ledger import records
from tests.integration.together.shared import Shared, facet
from tests.scenarios.project import Project, month

pytestmark = [pytest.mark.minutes(4), pytest.mark.integration, pytest.mark.timeout(600)]

MODEL = "observed"
LIMIT = 240.0
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
    client.trigger(f"{MODEL}.ingest", f"land__{key}")
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        with project.workspace.ledger.read() as session:
            busy = records.in_flight(session, project.name)
        made = [entry for entry in project.history()[before:] if entry["promotion"]]
        if made and not busy:
            run_id = str(made[-1]["decision"].run_id)
            client.wait_for_run(f"{MODEL}.retrain", run_id, LIMIT)
            return run_id
        time.sleep(0.5)  # between looks at a run that takes seconds
    raise AssertionError(f"nothing was promoted for {key} within {LIMIT:g} s: {project.history()}")


@pytest.fixture(scope="module")
def told(shared: Shared) -> Told:
    # 3600 an hour is 1 a second: what a task costs is the seconds it takes.
    compute = {"train": {"price": 3600}, "evaluate": {"price": 3600}}
    families = ("ingest", "score", "monitor", "retrain", "rollback")
    project, client = shared.model(MODEL, *families, compute=compute), shared.client
    live(client, project, "2024-01")
    run_id = live(client, project, "2024-02")
    logs = {task: client.log(f"{MODEL}.retrain", run_id, task) for task in ("train", "conclude")}
    wish = {"reason": "a test", "version": "1", "force": True}
    client.trigger(f"{MODEL}.rollback", "back", wish)
    ended = client.wait_for_run(f"{MODEL}.rollback", "back", LIMIT)
    assert ended["state"] == "success", client.log(f"{MODEL}.rollback", "back", "roll_back")
    every = shared.lineage(f"{MODEL}.rollback.roll_back")
    history = [event for event in every if event["job"]["name"].startswith(f"{MODEL}.")]
    return Told(project, last_of(history), history, shared.receiver.gauges(), logs)


def last_of(history: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Task → its last event that has a document."""
    return {
        event["job"]["name"].removeprefix(f"{MODEL}."): event
        for event in history
        if event["eventType"] == "COMPLETE" and facet(event).get("digest")
    }


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
        assert said["model"] == MODEL
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
    reached, frontier = set(), {f"models:{MODEL}/2"}
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
    assert f"x-evergreen://{MODEL}:partitions" in assets, "outlets are told beside the datasets"


def test_stages_are_measured_and_a_price_makes_a_cost(told: Told) -> None:
    tags = f"model={MODEL},stage=train"
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
    assert ("evergreen.stage.cost", f"model={MODEL},stage=gate") not in told.gauges
    (line,) = (line for line in told.logs["train"].splitlines() if "used: " in line)
    assert re.search(r"CPU [\d.]+ s, peak memory \d+ MB.*rows [\d,]+, cost about [\d.]+", line)
