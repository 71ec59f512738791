"""Events are hints: late, doubled and lost ones, and every partition is trained on once."""

from __future__ import annotations

import pytest

from tests.scenarios.project import Project, month

pytestmark = pytest.mark.dags


def test_nothing_new_is_no_event(project: Project) -> None:
    run = project.ingest()
    assert (run.state, run.states["ingest"]) == ("success", "skipped")
    assert "nothing new has landed" in run.logs["ingest"]


def test_two_at_once_a_lost_event_and_a_late_file(project: Project) -> None:
    """The events of the first two ingests start nothing; one retrain answers for all."""
    run = project.ingest(m2024_02=month("2024-02"), m2024_03=month("2024-03"))
    assert run.logs["ingest"].index("registered 2024-02") < run.logs["ingest"].index(
        "registered 2024-03"
    )
    run = project.ingest(m2023_12=month("2023-12"))
    assert "late: 2023-12 arrived after a newer partition" in run.logs["ingest"]
    assert project.open_causes() == ["new_data"] * 3

    run = project.retrain()
    assert "partitions: 4 (2023-12 to 2024-03)" in run.logs["extract"]
    assert (run.state, project.last("outcome").outcome) == ("success", "promoted")
    assert (project.champion(), project.open_causes()) == ("2", [])
    assert "nothing asks for a retrain" in project.retrain().logs["arbitrate"]
