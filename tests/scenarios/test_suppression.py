"""When a retrain isn't worth it: the decision says why and until when, the rest is skipped."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from evergreen.ledger import acts, records
from evergreen.lifecycle.arbitration import arbitrate
from tests.scenarios.project import Project, month
from tests.scenarios.runs import Run

pytestmark = pytest.mark.dags


def assert_suppressed(project: Project, run: Run) -> None:
    """The run is green, everything after the arbiter is visibly skipped, nothing went live."""
    assert run.state == "success"
    ran = {task for task, state in run.states.items() if state == "success"}
    assert ran == {"arbitrate", "conclude"}
    assert set(run.states.values()) == {"success", "skipped"}
    assert "outcome: no retrain" in run.logs["conclude"]
    assert (project.last("decision").action, project.last("outcome")) == ("suppress", None)
    assert project.champion() == "1"


def test_nobody_asks(project: Project) -> None:
    run = project.retrain()
    assert_suppressed(project, run)
    assert "nothing asks for a retrain\ndecision: SUPPRESS" in run.logs["arbitrate"]


def test_too_few_labels_have_matured(project: Project) -> None:
    """100 rows of February, and the last six of January, whose labels were too fresh then."""
    project.ingest(m2024_02=month("2024-02", rows=100))
    run = project.retrain()
    assert_suppressed(project, run)
    assert (
        "new_data: 106 labels matured since the last training, 300 needed" in run.logs["arbitrate"]
    )
    assert project.open_causes() == ["new_data"]


@pytest.mark.parametrize(
    ("triggers", "until", "why"),
    [
        ({"cooldown": "60d"}, (2024, 4, 1), "cooldown: 60d since the last training"),
        ({"budget": {"runs": 1, "per": "90d"}}, (2024, 5, 1), "budget: 1 of 1 runs spent in 90d"),
    ],
)
def test_held_back_until_a_moment(
    project: Project, triggers: dict[str, Any], until: tuple[int, int, int], why: str
) -> None:
    """What asks stays open, so that the first run after the moment answers it."""
    project.declare(triggers=triggers)
    project.ingest(m2024_02=month("2024-02"))
    run = project.retrain()
    assert_suppressed(project, run)
    moment = datetime(*until, tzinfo=UTC)
    assert project.last("decision").until == moment
    assert f"{why}\ndecision: SUPPRESS until {moment.isoformat()}" in run.logs["arbitrate"]
    assert project.open_causes() == ["new_data"]
    then = arbitrate(project.declaration, project.workspace, run_id="then", as_of=moment)
    assert (then.action, then.cause) == ("retrain", "new_data")


def test_paused_by_a_person(project: Project) -> None:
    """What asks stays open, so that the first run after the pause answers it."""
    project.ingest(m2024_02=month("2024-02"))
    with project.workspace.ledger.write() as session:
        acts.pause(session, project.name, key="1", person="vera", comment="a new schema lands")
    run = project.retrain()
    assert_suppressed(project, run)
    assert (
        "paused by vera: a new schema lands\n"
        "  resume in Models, or by `evergreen resume example`\n"
        "decision: SUPPRESS" in run.logs["arbitrate"]
    )
    assert project.open_causes() == ["new_data"]
    with project.workspace.ledger.write() as session:
        acts.resume(session, project.name, key="2", person="ann", comment="it has landed")
    then = arbitrate(project.declaration, project.workspace, run_id="then")
    assert (then.action, then.cause) == ("retrain", "new_data")


def test_one_retrain_at_a_time(project: Project) -> None:
    """A person isn't heard either, while Airflow says that the other run has not ended."""
    project.ingest(m2024_02=month("2024-02"))
    other = project.begin_retrain()
    for run in (project.retrain(), project.retrain_by_hand(reason="now!")):
        assert_suppressed(project, run)
        assert f"a retrain is under way: {other}" in run.logs["arbitrate"]
    with project.workspace.ledger.read() as session:
        assert [row.run_id for row in records.in_flight(session, project.name)] == [other]
