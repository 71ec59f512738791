"""The whole loop by a real scheduler: noise, two futile retrains, a person, and on it goes."""

from __future__ import annotations

import time

import pytest

from evergreen.airflow_client import AirflowClient
from evergreen.ledger import records
from evergreen.ledger.tables import DecisionRow
from evergreen.lifecycle import escalation
from tests.integration.together.shared import Shared
from tests.scenarios.project import Project
from tests.scenarios.world import WATCHING, month

pytestmark = [pytest.mark.minutes(4), pytest.mark.integration, pytest.mark.timeout(900)]

MODEL = "looping"
ESCALATE = f"{MODEL}.escalate"
LIMIT = 240.0
PARKED = 4.0


@pytest.fixture(scope="module")
def airflow(shared: Shared) -> AirflowClient:
    return shared.client


@pytest.fixture(scope="module")
def project(shared: Shared) -> Project:
    return shared.model(MODEL, "ingest", "score", "monitor", "retrain", "escalate", **WATCHING)


def live(airflow: AirflowClient, project: Project, key: str, *, noise: bool = False) -> DecisionRow:
    """Land a month and start ingest, nothing else; the decision on it, when its run has ended."""
    project.land(**{f"m{key.replace('-', '_')}": month(key, noise=noise)})
    airflow.trigger(f"{MODEL}.ingest", f"land__{key}")
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        with project.workspace.ledger.read() as session:
            last = records.sequence(session, project.name)
            decisions = [entry["decision"] for entry in records.history(session, project.name)]
            known = {p.key for p in records.latest_partitions(session, project.name)}
            busy = records.in_flight(session, project.name)
        decided = [d for d in decisions if key in known and d.sequence >= last]
        if decided and not busy:
            return decided[0]
        time.sleep(0.5)  # between looks at a run that takes seconds
    raise AssertionError(f"{key} was not decided on within {LIMIT:g} s")


def waiting(airflow: AirflowClient) -> str:
    """The escalate run that an event has started, once its task waits for a person."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        for run in airflow.dag_runs(ESCALATE):
            tasks = airflow.task_instances(ESCALATE, run["dag_run_id"])
            if any(task["state"] == "awaiting_input" for task in tasks):
                return str(run["dag_run_id"])
        time.sleep(0.5)  # as above
    raise AssertionError("nobody was asked")


def test_what_retraining_cant_mend_is_brought_to_a_person_and_goes_on_when_told(
    airflow: AirflowClient, project: Project
) -> None:
    assert live(airflow, project, "2024-01").action == "retrain"
    noisy = [live(airflow, project, key, noise=True) for key in ("2024-02", "2024-03", "2024-04")]
    assert [(d.action, d.priority) for d in noisy] == [
        ("retrain", "P3"), ("retrain", "P2"), ("investigate", "P1"),
    ]  # fmt: skip
    assert [d.tune for d in noisy] == [False, True, False]

    (*_, watched) = airflow.dag_runs(f"{MODEL}.monitor")
    page = airflow.links(f"{MODEL}.monitor", watched["dag_run_id"], "detect_drift")["Drift report"]
    assert page is not None
    assert b"<html" in project.workspace.store.read_bytes(page)[:1000].lower()

    run_id = waiting(airflow)
    time.sleep(PARKED)  # Airflow 3.3.2 may kill a task that is answered while it is being parked
    airflow.answer(ESCALATE, run_id, "escalate", "Acknowledge", params_input={"comment": "a join"})
    assert airflow.wait_for_run(ESCALATE, run_id, 120)["state"] == "success"
    with project.workspace.ledger.read() as session:
        stopped = records.last_escalation(session, project.name)
        assert stopped is not None
        answers = records.answers_to(session, stopped.id)
        assert [(a.answer, a.person, a.comment) for a in answers] == [
            ("acknowledged", "admin", "a join")
        ]
        assert escalation.standing(session, project.declaration).futile == 0
    assert live(airflow, project, "2024-05", noise=True).action == "retrain"
    assert project.champion() == "1"
