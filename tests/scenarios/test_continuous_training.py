"""The life of a model: its first version, a better one, and candidates that must not go live."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from evergreen.cli import app
from evergreen.cli.common import console
from evergreen.ledger import records
from evergreen.lifecycle import tracking
from tests.scenarios.project import Project, month

pytestmark = pytest.mark.dags


def test_more_data_makes_a_better_version_and_each_month_is_answered_by_its_own(
    project: Project,
) -> None:
    """Version 1 answers February, version 2 goes live on evidence and answers March."""
    first = project.last("promotion")
    assert (first.kind, first.version, first.position) == ("bootstrap", "1", 1)
    assert first.as_of == datetime(2024, 2, 1, tzinfo=UTC)

    project.ingest(m2024_02=month("2024-02"))
    run = project.retrain()
    assert run.state == "success"
    assert {k: v for k, v in run.states.items() if v != "success"} == {"roll_back": "skipped"}
    assert "verdict: PROMOTE: better than champion 1: log_loss improves by +" in run.logs["gate"]
    assert "version 2 is live as of 2024-03-01" in run.logs["promote"]
    second = project.last("promotion")
    assert (second.version, second.position, second.replaced) == ("2", 2, "1")
    assert (project.last("outcome").outcome, project.open_causes()) == ("promoted", [])
    assert (project.champion(), set(project.versions())) == ("2", {"1", "2"})
    assert project.versions()["2"]["evergreen.cause"] == "new_data"

    project.ingest(m2024_03=month("2024-03"))
    run = project.score()
    assert "scored 2024-02: 800 rows by version 1; log_loss" in run.logs["score"]
    assert "scored 2024-03: 800 rows by version 2; log_loss" in run.logs["score"]
    before = _prediction_log(project)
    assert before.groupby("partition")["model_version"].unique().map(list).to_dict() == {
        "2024-02": ["1"],
        "2024-03": ["2"],
    }

    assert "nothing to score" in project.score().logs["extract"]
    again = project.score(partitions=["2024-03"])
    assert "scored 2024-03" in again.logs["score"]
    assert "2024-02" not in again.logs["score"]
    pd.testing.assert_frame_equal(_prediction_log(project), before)
    with project.workspace.ledger.read() as session:
        assert [row.partition for row in records.scores(session, project.name)] == [
            "2024-02",
            "2024-03",
        ]


def test_a_recipe_taught_permuted_labels_is_refused_and_the_reason_is_everywhere(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that training sees is permuted; the holdout, the last 14 days, is as it happened."""
    january, february = month("2024-01"), month("2024-02")
    project.ingest(m2024_01=_permuted(january, len(january)), m2024_02=_permuted(february, 400))
    run = project.retrain()
    assert run.state == "success"
    assert run.states["promote"] == "skipped"
    verdict = project.last("verdict")
    assert (verdict.verdict, verdict.promotes) == ("reject", False)
    assert verdict.reason.startswith("better than naive (prior): log_loss improves by ")
    assert (project.last("outcome").outcome, project.last("promotion")) == ("reject", None)
    assert (project.champion(), set(project.versions())) == ("1", {"1"})

    assert f"verdict: REJECT: {verdict.reason}" in run.logs["gate"]
    assert "next: nothing; the champion stays" in run.logs["gate"]
    assert verdict.reason in _history(project, monkeypatch)
    told = json.loads(_history(project, monkeypatch, "--json"))[-1]
    assert told["verdict"]["reason"] == told["outcome"]["detail"] == verdict.reason
    tags = tracking.tags_of(project.workspace, verdict.mlflow_run)
    assert (tags["evergreen.verdict"], tags["evergreen.reason"]) == ("reject", verdict.reason)


def test_a_person_may_ask_any_time_but_an_identical_twin_is_not_better(project: Project) -> None:
    """By hand, neither cooldown nor budget holds; the same data gives the same model."""
    held = {"cooldown": "90d", "budget": {"runs": 1, "per": "365d"}}
    project.declare(triggers={"new_data": {"min_rows": 1}, **held})
    run = project.retrain_by_hand(reason="an audit asks for it")
    assert "a person asked: cooldown and budget don't apply" in run.logs["arbitrate"]
    assert run.states["promote"] == "skipped"
    decision, verdict = project.last("decision"), project.last("verdict")
    assert (decision.action, decision.cause) == ("retrain", "manual")
    assert _evidence(project) == {"user": "dag_test", "reason": "an audit asks for it"}
    assert verdict.verdict == project.last("outcome").outcome == "inconclusive"
    assert verdict.reason.startswith("the interval spans 0: log_loss improves by +0.00000")
    assert "verdict: INCONCLUSIVE" in run.logs["gate"]
    assert (project.champion(), set(project.versions())) == ("1", {"1"})


def _permuted(frame: pd.DataFrame, rows: int) -> pd.DataFrame:
    """The frame with the first ``rows`` labels in another order."""
    labels = frame["late"].to_numpy().copy()
    labels[:rows] = np.random.default_rng(7).permutation(labels[:rows])
    return frame.assign(late=labels)


def _prediction_log(project: Project) -> pd.DataFrame:
    root = project.home / "store" / "predictions" / f"model={project.name}"
    files = sorted(root.glob("partition=*/*.parquet"))
    return pd.concat(
        [pd.read_parquet(f).assign(partition=f.parent.name.partition("=")[2]) for f in files],
        ignore_index=True,
    )


def _history(project: Project, monkeypatch: pytest.MonkeyPatch, *options: str) -> str:
    monkeypatch.setenv("EVERGREEN_HOME", str(project.home))
    monkeypatch.setattr(console, "_width", 400)  # it read COLUMNS when it was imported
    arguments = ["history", project.name, "--models", str(project.models), *options]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def _evidence(project: Project) -> dict[str, str]:
    from sqlalchemy import select

    from evergreen.ledger.tables import SignalRow

    with project.workspace.ledger.read() as session:
        return dict(
            session.scalars(select(SignalRow).where(SignalRow.cause == "manual")).one().evidence
        )
