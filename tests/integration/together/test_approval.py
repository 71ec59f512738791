"""A person stands between gate and promotion: a real Airflow waits, and does what was answered."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from evergreen.airflow_client import AirflowClient
from evergreen.lifecycle.arbitration import arbitrate
from evergreen.lifecycle.ingestion import ingest
from tests.integration.together.shared import Shared, ended, facet
from tests.scenarios.project import Project, month

pytestmark = [pytest.mark.minutes(4), pytest.mark.integration, pytest.mark.timeout(600)]

MODEL = "approved"
DAG_ID = f"{MODEL}.retrain"
FAMILIES = ("drill", "escalate", "ingest", "monitor", "retrain", "rollback", "score")


@pytest.fixture(scope="module")
def airflow(shared: Shared) -> AirflowClient:
    return shared.client


@pytest.fixture(scope="module")
def project(shared: Shared) -> Iterator[Project]:
    """January is registered, and a retrain was decided on in a run that Airflow never heard of."""
    broken = Project(shared.folder, "broken")
    broken.declare(owner={"name": "nobody"})
    (shared.folder / "dags" / "declarations.py").touch()  # it tells of what is broken
    project = shared.model(MODEL, *FAMILIES, gate={"approval": "always"})
    project.land(m2024_01=month("2024-01"))
    ingest(project.declaration, project.workspace, datetime(2024, 2, 1, tzinfo=UTC))
    arbitrate(project.declaration, project.workspace, run_id="deleted")
    yield project
    shutil.rmtree(broken.models / broken.name)


def answered(airflow: AirflowClient, run_id: str, option: str) -> dict[str, Any]:
    """Start a retrain by hand, answer when it asks, and wait for its end: task → state."""
    airflow.trigger(DAG_ID, run_id, {"reason": f"to see {option}"})
    deadline = time.monotonic() + 240
    while (states := states_of(airflow, run_id)).get("approve") != "awaiting_input":
        assert time.monotonic() < deadline, states
        assert not {"failed", "upstream_failed"} & set(states.values()), states
        time.sleep(0.5)
    assert states["promote"] not in {"success", "skipped"}
    # Airflow 3.3.2 takes the end of the process that parked a task for the end of the one that
    # goes on with the answer, when that comes at once: it kills it, and asks again.
    time.sleep(4)
    airflow.answer(DAG_ID, run_id, "approve", option)
    assert airflow.wait_for_run(DAG_ID, run_id, 120)["state"] == "success"
    return states_of(airflow, run_id)


def states_of(airflow: AirflowClient, run_id: str) -> dict[str, str]:
    """Task → state."""
    return {it["task_id"]: it["state"] for it in airflow.task_instances(DAG_ID, run_id)}


def test_a_broken_model_is_reported_and_the_other_has_its_dags(
    airflow: AirflowClient, project: Project
) -> None:
    deadline = time.monotonic() + 60
    while not (errors := airflow.import_errors()):
        assert time.monotonic() < deadline
        time.sleep(0.5)  # between looks, until the deadline
    (error,) = errors
    assert error["filename"] == "declarations.py"
    assert "broken/model.yaml" in error["stack_trace"]
    names = [dag["dag_id"] for dag in airflow.dags(f"{MODEL}.")]
    assert names == [f"{MODEL}.{family}" for family in FAMILIES]


def test_no_means_no_and_yes_means_live(airflow: AirflowClient, project: Project) -> None:
    """The first of the two also finds that the run in flight is gone, and closes its decision."""
    states = answered(airflow, "no", "Reject")
    assert (states["approve"], states["promote"], states["conclude"]) == (
        "success",
        "skipped",
        "success",
    )
    decision, outcome = project.last("decision"), project.last("outcome")
    assert (decision.run_id, decision.cause) == ("no", "manual")
    assert (outcome.outcome, outcome.detail) == ("declined", "declined by admin")
    assert (project.last("verdict").promotes, project.last("promotion")) == (True, None)
    assert (project.champion(), project.versions()) == (None, {})

    lost = project.history()[0]
    assert (lost["decision"].run_id, lost["outcome"].outcome) == ("deleted", "failed")
    assert lost["outcome"].detail.endswith("(Airflow says: gone)")

    states = answered(airflow, "yes", "Approve")
    assert (states["approve"], states["promote"]) == ("success", "success")
    assert (project.last("outcome").outcome, project.champion()) == ("promoted", "1")


def test_the_answers_are_told_as_lineage(shared: Shared, project: Project) -> None:
    """After the test above."""
    job = f"{project.name}.retrain.approve"
    told = ended(shared.lineage(job, 2), job)
    assert [facet(event)["conclusion"] for event in told] == ["declined", "approved"]
    for event in told:
        assert {given["name"].split("/")[-2] for given in event["inputs"]} == {
            "decision",
            "verdict",
        }
