"""A real Airflow and a real replica: promoted, baked without a slot, rolled back by form, drilled."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from evergreen.airflow_client import AirflowClient
from evergreen.ledger import records
from evergreen.ledger.tables import DrillRow
from tests.integration.fleet import Replica, Served, declared_replica
from tests.integration.together.shared import Shared
from tests.printing import Figure

pytestmark = [pytest.mark.minutes(2), pytest.mark.integration, pytest.mark.timeout(1200)]

MODEL = "baked"
LIMIT = 420.0


@pytest.fixture(scope="module")
def served(shared: Shared) -> Served:
    """Two days have landed, and version 1 is live and verified; its replica is declared."""
    served = Served(shared.folder, MODEL)
    served.declare(bake={"watch": "15s", "every": "3s", "requests": 5})
    for day in (1, 2):
        served.land(day)
    served.promote("first")
    served.verify()
    return served


@pytest.fixture(scope="module")
def replica(served: Served) -> Iterator[Replica]:
    with declared_replica(served) as replica:
        yield replica


@pytest.fixture(scope="module")
def airflow(shared: Shared, served: Served, replica: Replica) -> AirflowClient:
    shared.wait_for(MODEL, "retrain", "bake", "rollback", "drill")
    return shared.client


def test_a_promotion_waits_for_the_replica_and_bakes_without_a_slot(
    airflow: AirflowClient, served: Served, replica: Replica
) -> None:
    served.land(3)
    airflow.trigger(f"{MODEL}.retrain", "second", {"reason": "a new version"})
    done = airflow.wait_for_run(f"{MODEL}.retrain", "second", LIMIT)
    assert done["state"] == "success"
    assert replica.version()["version"] == "2"
    assert "served" in served.events()
    deadline, states = time.monotonic() + LIMIT, set()
    while "watched" not in served.events():
        assert time.monotonic() < deadline, (states, served.events())
        for run in airflow.dag_runs(f"{MODEL}.bake"):
            tasks = airflow.task_instances(f"{MODEL}.bake", run["dag_run_id"])
            states |= {task["state"] for task in tasks if task["task_id"] == "bake"}
        assert replica.ask({"rows": [{"origin": "JFK", "distance": 7.0}]}).status_code == 200
        time.sleep(0.5)  # between requests, until the deadline
    assert "deferred" in states
    assert "disproved" not in served.events()


def test_the_form_rolls_back_to_the_last_verified_version(
    airflow: AirflowClient, served: Served, replica: Replica
) -> None:
    airflow.trigger(f"{MODEL}.rollback", "back", {"reason": "the dashboard looks odd"})
    done = airflow.wait_for_run(f"{MODEL}.rollback", "back", LIMIT)
    assert done["state"] == "success"
    assert replica.version()["version"] == "1"
    with served.workspace.ledger.read() as session:
        live = records.champion(session, MODEL)
        assert live is not None
        assert (live.kind, live.version, live.replaced) == ("rollback", "1", "2")
        assert (live.person, live.reason) == ("admin", "the dashboard looks odd")


def test_a_drill_reports_seconds_and_touches_nothing(
    airflow: AirflowClient, served: Served, replica: Replica, figure: Figure
) -> None:
    served.promote("third")  # so that there is a version to go back to
    airflow.trigger(f"{MODEL}.drill", "drill", {})
    done = airflow.wait_for_run(f"{MODEL}.drill", "drill", LIMIT)
    with served.workspace.ledger.read() as session:
        drilled: DrillRow = records.drills(session, MODEL)[0]
        live = records.champion(session, MODEL)
    assert done["state"] == "success", drilled.evidence
    assert live is not None
    assert (drilled.version, drilled.target, drilled.passed) == (live.version, "1", True)
    assert replica.version()["version"] == live.version
    figure(
        f"drill: version 1 restored in {drilled.restore_seconds:.2f} s, version "
        f"{live.version} back in {drilled.return_seconds:.2f} s"
    )
