"""A version that disappoints goes away by itself, and a person can send any version away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evergreen.ledger import records
from evergreen.lifecycle import registry
from evergreen.lifecycle.escalation import standing
from tests.scenarios.project import Project
from tests.scenarios.runs import Run
from tests.scenarios.world import WATCHING, month

pytestmark = [pytest.mark.dags, pytest.mark.minutes(2)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Version 1 has learned January, and February's labels have verified it."""
    training = {
        **WATCHING["training"],
        "window": {"kind": "sliding", "length": "30d", "min_rows": 100},
    }
    project = Project.create(
        tmp_path_factory.mktemp("rollback") / "project", **{**WATCHING, "training": training}
    )
    project.live(m2024_01=month("2024-01"))
    project.live(m2024_02=month("2024-02"))
    return project


def events(project: Project) -> dict[str, dict[str, Any]]:
    """What is known of the live promotion."""
    with project.workspace.ledger.read() as session:
        live = records.champion(session, project.name)
        assert live is not None
        return records.events_of(session, live.id)


def turned_at_the_end(key: str) -> pd.DataFrame:
    """A month whose labels mean the opposite in most of what is learned, and in the holdout."""
    first, last = month(key), month(key, turned=True)
    late = first["event_timestamp"] >= first["event_timestamp"].max() - pd.Timedelta(days=27)
    return pd.concat([first[~late], last[late]], ignore_index=True)


@pytest.fixture(scope="module")
def replaced(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """March turns at its end, so version 2 is judged by that and goes live."""
    project = project.copy(tmp_path_factory.mktemp("replaced") / "project")
    march = project.live(m2024_03=turned_at_the_end("2024-03"))
    assert march["retrain"].states["promote"] == "success", project.last("verdict").reason
    assert project.champion() == "2"
    return project


@pytest.fixture(scope="module")
def disappointed(
    replaced: Project, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, Run]:
    """April is as the months before March were."""
    project = replaced.copy(tmp_path_factory.mktemp("disappointed") / "project")
    april = project.live(m2024_04=month("2024-04"))
    return project, april["retrain"]


def test_a_version_is_verified_by_its_first_labels(project: Project) -> None:
    assert project.champion() == "1"
    assert {"proven", "verified"} <= set(events(project))


def test_a_regression_that_labels_show_is_rolled_back_and_escalated(
    disappointed: tuple[Project, Run],
) -> None:
    project, april = disappointed
    assert april.states["roll_back"] == "success", april.logs["roll_back"]
    assert april.states["extract"] == "skipped"
    assert project.last("decision").action == "rollback"
    assert "disproved" in project.last("decision").reasons[0]
    assert project.champion() == "1"
    with project.workspace.ledger.read() as session:
        live = records.champion(session, project.name)
        assert live is not None
        assert (live.kind, live.version, live.replaced, live.person) == ("rollback", "1", "2", None)
        assert list(records.quarantined(session, project.name)) == ["2"]
        stopped = standing(session, project.declaration).stopped
        assert stopped is not None
        assert stopped.cause == "rollback"
    assert "verified" in events(project)
    assert "version 2 is quarantined" in april.logs["roll_back"]
    assert "asked by the machine" in april.logs["roll_back"]


def test_nothing_is_retrained_until_a_person_has_looked(disappointed: tuple[Project, Run]) -> None:
    project, _ = disappointed
    project = project.copy(project.folder.with_name("later"))
    may = project.live(m2024_05=month("2024-05", turned=True))
    assert project.last("decision").action == "investigate"
    assert may["retrain"].states["roll_back"] == "skipped"
    assert project.champion() == "1"


def test_a_person_rolls_back_by_the_form(replaced: Project, tmp_path: Path) -> None:
    project = replaced.copy(tmp_path / "project")
    back = project.roll_back(reason="the dashboard looks odd")
    assert back.states == {"roll_back": "success"}
    assert "asked by" in back.logs["roll_back"]
    assert "the dashboard looks odd" in back.logs["roll_back"]
    assert project.champion() == "1"
    with project.workspace.ledger.read() as session:
        assert standing(session, project.declaration).stopped is None  # a person knows already
    assert registry.champion_version(project.workspace, project.declaration) == "1"


def test_rolling_back_without_a_verified_version_is_refused(
    project: Project, tmp_path: Path
) -> None:
    project = project.copy(tmp_path / "project")
    back = project.roll_back(reason="I want the one before")
    assert back.states == {"roll_back": "failed"}
    assert "REFUSED" in back.logs["roll_back"]
    assert "verified" in back.logs["roll_back"]
    assert project.champion() == "1"
