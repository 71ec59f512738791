"""Data that must not teach or be answered for: what stops, what is set aside, what is only said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.scenarios.project import Project, month
from tests.scenarios.runs import Run

pytestmark = pytest.mark.dags


def assert_refused(project: Project, run: Run, task: str, reason: str) -> None:
    """The task failed at its first try, the ledger has the reason, and its signals are answered."""
    assert (run.state, run.states[task], run.tries[task]) == ("failed", "failed", 1)
    assert reason in run.logs[task]
    outcome = project.last("outcome")
    assert outcome.outcome == "refused"
    assert reason in outcome.detail
    assert (project.last("verdict"), project.open_causes()) == (None, [])
    assert "outcome: refused" in run.logs["conclude"]


def test_a_retyped_column_blocks_until_the_file_is_mended(project: Project) -> None:
    """Then the new revision is trained on, without the rows that are set aside."""
    february = month("2024-02")
    project.ingest(m2024_02=february.assign(signal=february["signal"].astype(str)))
    assert_refused(
        project, project.retrain(), "validate_data", "column signal: string, allowed double"
    )
    assert project.retrain().states["extract"] == "skipped"
    assert project.champion() == "1"

    worse = pd.concat([february, february.iloc[[3, 3, 4]]], ignore_index=True)
    worse.loc[[10, 11], "turn"] = [np.inf, -np.inf]
    run = project.ingest(m2024_02=worse.assign(colour="red", remark=None))
    assert "CHANGED AFTER REGISTRATION: 2024-02 is now revision 2" in run.logs["ingest"]
    run = project.retrain()
    assert (run.state, project.champion()) == ("success", "2"), run.logs["gate"]
    log = run.logs["validate_data"]
    assert "quarantined: 5 rows set aside" in log
    assert "warn: 2024-02: data: column colour: string (allowed: missing)" in log
    assert "warn: 2024-02: data: other columns hold values: all null: remark" in log
    assert "quarantine: 2024-02: data: no repeated rows: 3 of 803" in log
    assert "quarantine: 2024-02: data: no infinite values: 2 of 803" in log
    assert "verdict: usable" in log
    assert "snapshot" in run.logs["build_features"]
    assert "1,598 rows in, 1,598 out" in run.logs["build_features"]


def test_one_class_only_is_nothing_to_learn(empty: Project) -> None:
    empty.ingest(m2024_01=month("2024-01").assign(late=0.0))
    assert_refused(
        empty, empty.retrain(), "validate_data", "classes of late: 1: 0, allowed exactly 2"
    )
    assert (empty.champion(), empty.versions()) == (None, {})


def test_labels_that_never_mature_are_no_reason_to_train(empty: Project) -> None:
    """By itself nothing happens; a person who insists is told what is missing."""
    empty.ingest(m2024_01=month("2024-01").assign(late=np.nan))
    run = empty.retrain()
    assert (run.state, run.states["extract"]) == ("success", "skipped")
    assert "new_data: 0 labels matured since the last training" in run.logs["arbitrate"]
    reason = "none of 800 rows has a label known by 2024-02-01T00:00:00+00:00 (0 become known later, 800 never)"
    assert_refused(empty, empty.retrain_by_hand(reason="try"), "extract", reason)


def test_a_file_that_is_no_partition_fails_ingest_but_not_the_others(empty: Project) -> None:
    run = empty.ingest(m2024_01=month("2024-02"), m2024_02=month("2024-02"))
    assert run.state == "success", "the good month would wait for the bad one"
    assert "REFUSED 2024-01" in run.logs["ingest"]
    assert "registered 2024-02: 800 rows" in run.logs["ingest"]
    run = empty.ingest()
    assert (run.state, run.tries["ingest"]) == ("failed", 1)
    assert empty.open_causes() == ["new_data"]


def test_a_bad_month_is_left_out_and_the_good_one_is_answered(project: Project) -> None:
    february = month("2024-02")
    project.ingest(
        m2024_02=february.assign(signal=february["signal"].astype(str)), m2024_03=month("2024-03")
    )
    run = project.score()
    assert run.state == "success"
    assert "verdict: BLOCKED: 2024-02" in run.logs["validate_data"]
    assert "scored 2024-03: 800 rows by version 1" in run.logs["score"]
    assert "not scored 2024-02: its data is blocked" in run.logs["score"]
