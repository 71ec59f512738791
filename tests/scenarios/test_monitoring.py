"""The loop closed: a model that is watched, that asks for its own retraining when that helps, and
for a person when it doesn't. Real DAG runs; each scenario asserts registry, ledger, priority, log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from evergreen.ledger import records
from evergreen.ledger.tables import PromotionRow
from evergreen.lifecycle import escalation
from evergreen.reporting import status_of
from tests.scenarios.project import Project
from tests.scenarios.world import SUMMER, WATCHING, month

pytestmark = [pytest.mark.dags, pytest.mark.minutes(3)]


@pytest.fixture(scope="session")
def watched_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A model that only watches; it has learned a winter. Not to be changed."""
    project = Project.create(tmp_path_factory.mktemp("watched") / "project", **WATCHING)
    runs = project.live(m2024_01=month("2024-01"))
    assert runs["score"].states["extract"] == "skipped"
    assert "nothing to watch" in runs["monitor"].logs["join_labels"]
    assert project.champion() == "1"
    return project


@pytest.fixture
def project(watched_project: Project, tmp_path: Path) -> Project:
    """The same, to go on with."""
    return watched_project.copy(tmp_path / "project")


def priority(project: Project) -> str | None:
    with project.workspace.ledger.read() as session:
        return escalation.standing(session, project.declaration).priority


def violations(project: Project, key: str) -> set[str]:
    """What a window violates, by its latest measurements."""
    with project.workspace.ledger.read() as session:
        rows = records.measurements(session, project.name)
        return {found for row in rows if row.window == key for found in row.violates}


def retrains(project: Project) -> list[str]:
    """The causes of all retrains after the first version."""
    with project.workspace.ledger.read() as session:
        return [str(row.cause) for row in reversed(records.retrains(session, project.name))][1:]


def test_before_there_is_a_version_nothing_is_watched_and_nothing_fails(empty: Project) -> None:
    empty.declare(**WATCHING)
    run = empty.monitor()
    assert (run.state, run.states["announce"]) == ("success", "success")
    assert {run.states[task] for task in run.states if task != "announce"} == {"skipped"}
    assert "nothing to watch" in run.logs["join_labels"]
    assert priority(empty) is None


def test_a_quiet_month_asks_for_nothing(project: Project) -> None:
    runs = project.live(m2024_02=month("2024-02"))
    assert violations(project, "2024-02") == set()
    assert "no signal" in runs["monitor"].logs["raise_signals"]
    assert "decision: SUPPRESS" in runs["retrain"].logs["arbitrate"]
    assert (priority(project), project.champion(), retrains(project)) == (None, "1", [])
    assert status_of(project.declaration, project.workspace)["health"] == "healthy"


def test_covariate_drift_that_retraining_mends(project: Project) -> None:
    """A summer was never seen. The next one is as what was learned: nothing asks again."""
    runs = project.live(m2024_02=month("2024-02", season=SUMMER))
    assert "inputs" in violations(project, "2024-02")
    assert "signal" in runs["monitor"].logs["detect_drift"]
    assert "signal drift by 2024-02" in runs["monitor"].logs["raise_signals"]
    assert runs["retrain"].states["promote"] == "success"
    assert project.champion() == "2"
    runs = project.live(m2024_03=month("2024-03", season=SUMMER))
    assert "inputs" not in violations(project, "2024-03")
    assert "most like 2024-02" in runs["monitor"].logs["detect_drift"]
    assert len(retrains(project)) == 1
    assert (priority(project), project.champion()) == (None, "2")


@pytest.mark.parametrize("metric", ["log_loss", "roc_auc"])
def test_concept_drift_that_retraining_mends_whichever_way_the_metric_runs(
    project: Project, metric: str
) -> None:
    """The same inputs mean the opposite. Once that was learned it is the new normal."""
    watching = {**WATCHING["monitoring"], "performance": {"metric": metric}}
    only = {**WATCHING["triggers"], "drift": None}
    sliding = {
        **WATCHING["training"],
        "window": {"kind": "sliding", "length": "29d", "min_rows": 50},
    }
    project.declare(**{**WATCHING, "monitoring": watching, "triggers": only, "training": sliding})
    runs = project.live(m2024_02=month("2024-02", turned=True))
    assert "performance" in violations(project, "2024-02")
    assert "inputs" not in violations(project, "2024-02")
    assert f"(by realised {metric})" in runs["monitor"].logs["measure_performance"]
    assert (project.champion(), retrains(project)) == ("2", ["performance"])
    project.live(m2024_03=month("2024-03", turned=True))
    assert "performance" not in violations(project, "2024-03")
    assert (priority(project), project.champion(), len(retrains(project))) == (None, "2", 1)


def test_noise_that_retraining_cant_mend_ends_with_a_person(project: Project) -> None:
    """Labels mean nothing any more: two attempts, the second one tuned, then automatic
    retraining stops at P1, however long it goes on."""
    levels = []
    for number, key in enumerate(("2024-02", "2024-03", "2024-04", "2024-05")):
        runs = project.live(**{f"m{key.replace('-', '_')}": month(key, noise=True)})
        assert "performance" in violations(project, key)
        levels.append(priority(project))
        states = runs["retrain"].states
        assert states["promote"] == "skipped"
        assert states["train"] == ("success" if number < 2 else "skipped")
    assert levels == ["P2", "P1", "P1", "P1"]
    assert retrains(project) == ["performance", "performance"]
    assert project.champion() == "1"
    decision = project.last("decision")
    assert (decision.action, decision.priority, decision.futile) == ("investigate", "P1", 2)
    assert "decision: INVESTIGATE" in runs["retrain"].logs["arbitrate"]
    assert "did not help" in runs["retrain"].logs["arbitrate"]
    stopped = escalation.open_escalation(project.declaration, project.workspace)
    assert stopped is not None
    assert stopped.futile == 2
    assert status_of(project.declaration, project.workspace)["health"] == "stopped"
    with project.workspace.ledger.read() as session:
        tuned = [row.tune for row in records.retrains(session, project.name)]
    assert tuned[:2] == [True, False]


def test_seasons_come_back(project: Project) -> None:
    """Winter, summer, winter, summer: one retrain for what was new, none for what recurs."""
    for number, key in enumerate(("2024-02", "2024-03", "2024-04", "2024-05")):
        season = {} if number % 2 else {"season": SUMMER}
        project.live(**{f"m{key.replace('-', '_')}": month(key, **season)})
    assert len(retrains(project)) == 1
    assert all("inputs" not in violations(project, key) for key in ("2024-03", "2024-04"))
    assert priority(project) is None


def test_a_column_that_means_nothing_may_drift(project: Project) -> None:
    runs = project.live(m2024_02=month("2024-02", idle=5.0))
    log = runs["monitor"].logs["detect_drift"]
    assert "idle" in log
    assert violations(project, "2024-02") == set()
    assert (project.champion(), retrains(project), priority(project)) == ("1", [], None)


@pytest.mark.parametrize(
    ("held", "why"),
    [
        ({"cooldown": "60d"}, "cooldown: 60d since the last training"),
        ({"budget": {"runs": 1, "per": "90d"}}, "budget: 1 of 1 runs spent in 90d"),
    ],
)
def test_drift_waits_for_cooldown_and_budget(
    project: Project, held: dict[str, Any], why: str
) -> None:
    project.declare(**{**WATCHING, "triggers": {**WATCHING["triggers"], **held}})
    runs = project.live(m2024_02=month("2024-02", season=SUMMER))
    log = runs["retrain"].logs["arbitrate"]
    assert f"{why}\npriority: P3\ndecision: SUPPRESS until 2024-0" in log
    assert status_of(project.declaration, project.workspace)["suppressed_until"] is not None
    assert "drift" in project.open_causes()
    assert (priority(project), retrains(project)) == ("P3", [])


def test_one_window_of_three_is_not_two(project: Project) -> None:
    """Summer, winter, summer: with two of three the third month is enough, the first is not."""
    often = {"violations": 2, "of": 3}
    triggers = {**WATCHING["triggers"], "drift": often, "performance": None}
    project.declare(**{**WATCHING, "triggers": triggers})
    runs = project.live(m2024_02=month("2024-02", season=SUMMER))
    assert (
        "drift: 1 of the last 3 windows violate (2024-02), 2 needed"
        in (runs["retrain"].logs["arbitrate"])
    )
    project.live(m2024_03=month("2024-03"))
    assert retrains(project) == []
    runs = project.live(m2024_04=month("2024-04", season=SUMMER))
    assert (
        "drift: 2 of the last 3 windows violate (2024-02, 2024-04), 2 needed"
        in (runs["retrain"].logs["arbitrate"])
    )
    assert retrains(project) == ["drift"]


def test_a_thousand_signals_make_one_run(project: Project) -> None:
    project.ingest(m2024_02=month("2024-02"))
    with project.workspace.ledger.write() as session:
        mark = records.watermark(session, project.name)
        assert mark is not None
        for number in range(1000):
            records.raise_signal(session, project.name, "drift", f"elsewhere/{number}", mark, {})
    assert project.retrain().states["train"] == "success"
    assert project.retrain().states["train"] == "skipped"
    assert (retrains(project), project.open_causes()) == (["drift"], [])


def test_a_signal_raised_while_a_retrain_runs_waits_for_its_end(project: Project) -> None:
    """The run under way is not joined by another one, and its signal is not lost."""
    project.ingest(m2024_02=month("2024-02", season=SUMMER))
    with project.workspace.ledger.write() as session:
        mark = records.watermark(session, project.name)
        assert mark is not None
        records.raise_signal(session, project.name, "drift", "elsewhere/1", mark, {})
    other = project.begin_retrain()
    project.score()
    project.monitor()
    run = project.retrain()
    assert f"a retrain is under way: {other}" in run.logs["arbitrate"]
    assert "drift" in project.open_causes()
    assert len(retrains(project)) == 1


def test_a_champion_rolled_back_is_watched_against_its_own_reference(project: Project) -> None:
    """Version 2 learned the summer. Version 1 comes back: a summer is new to it again."""
    project.live(m2024_02=month("2024-02", season=SUMMER))
    assert project.champion() == "2"
    with project.workspace.ledger.write() as session:
        first = session.scalars(select(PromotionRow).where(PromotionRow.version == "1")).one()
        live = records.champion(session, project.name)
        assert live is not None
        back = {c.name: getattr(first, c.name) for c in first.__table__.columns if c.name != "id"}
        back |= {"position": 3, "replaced": "2", "run_id": "back", "kind": "rollback"}
        session.add(PromotionRow(**{**back, "as_of": live.as_of}))
    runs = project.live(m2024_03=month("2024-03", season=SUMMER))
    assert "against version 1's training window" in runs["monitor"].logs["detect_drift"]
    assert "inputs" in violations(project, "2024-03")
