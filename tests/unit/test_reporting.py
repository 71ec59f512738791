"""What a model's status and history say of what people did."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from evergreen.ledger import acts
from evergreen.ledger.tables import ActRow, DecisionRow, EscalationRow, PromotionRow
from evergreen.reporting import history_of, status_of
from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in

MOMENT = datetime(2013, 1, 2, tzinfo=UTC)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_in(tmp_path)


def status(workspace: Workspace) -> dict[str, Any]:
    return status_of(declare(workspace.home), workspace)


def pause(workspace: Workspace) -> None:
    with workspace.ledger.write() as session:
        acts.pause(session, "example", key="1", person="vera", comment="audit")


def decided(kind: str = "first") -> tuple[DecisionRow, PromotionRow]:
    """A retrain that put version 1 live, or a rollback's promotion beside a decision."""
    decision = DecisionRow(
        model="example", run_id="run 1", action="retrain", cause="new_data", causes=[], reasons=[],
        as_of=MOMENT, sequence=1, tune=False,
    )  # fmt: skip
    promotion = PromotionRow(
        model="example", position=1, run_id="run 1", version="1", kind=kind, reason="", as_of=MOMENT,
        mlflow_run="r", model_uri="u", snapshot_uri="s", snapshot_digest="d",
        trained_through=MOMENT, origin={},
    )  # fmt: skip
    return decision, promotion


def test_a_paused_model_without_a_version_still_has_none(workspace: Workspace) -> None:
    pause(workspace)
    found = status(workspace)
    assert found["health"] == "no version"
    assert found["paused"]["person"] == "vera"


def test_what_needs_a_person_is_said_before_what_a_person_did(workspace: Workspace) -> None:
    decision, promotion = decided()
    with workspace.ledger.write() as session:
        session.add_all([decision, promotion])
    assert status(workspace)["health"] == "not watched yet"
    pause(workspace)
    assert status(workspace)["health"] == "paused"
    with workspace.ledger.write() as session:
        stop = EscalationRow(
            model="example", decision_id=decision.id, as_of=MOMENT, priority="P1", futile=2, reason=""
        )  # fmt: skip
        session.add(stop)
    found = status(workspace)
    assert found["health"] == "stopped"
    assert found["paused"]["comment"] == "audit"


def test_history_has_acts_beside_decisions_and_rollbacks(workspace: Workspace) -> None:
    decision, back = decided("rollback")
    asked = ActRow(
        model="example", key="1", act="pause", person="vera", comment="audit", detail={}
    )  # fmt: skip
    with workspace.ledger.write() as session:
        for day, row in enumerate((decision, asked, back), start=1):
            row.recorded_at = datetime(2020, 1, day, tzinfo=UTC)
            session.add(row)
    entries = history_of("example", workspace)
    assert [bool(entry["decision"]) for entry in entries] == [True, False, False]
    assert [bool(entry["promotion"]) for entry in entries] == [True, False, True]
    said = entries[1]["act"]
    assert (said["act"], said["person"], said["comment"]) == ("pause", "vera", "audit")
    assert said["recorded_at"] == datetime(2020, 1, 2, tzinfo=UTC)
