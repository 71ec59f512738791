"""When retraining doesn't help: what is futile, when it stops, and what a person changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from evergreen.errors import ConflictError
from evergreen.ledger import records
from evergreen.ledger.tables import MeasurementRow, PromotionRow
from evergreen.lifecycle import escalation
from evergreen.lifecycle.contracts import AnswerName
from evergreen.lifecycle.windows import windows_of
from evergreen.operators.escalation import _question
from tests.builders import declare, workspace_in
from tests.past import DAY, START, Past


def test_drift_that_retraining_cant_mend_stops_at_p1_after_two_runs(past: Past) -> None:
    """Each candidate is refused; the third time a person is asked, however long it goes on."""
    actions, priorities = [], []
    for _ in range(12):
        past.window("inputs")
        actions.append(past.retrain("reject").action)
        priorities.append(past.standing().priority)
    assert actions.count("retrain") == 2
    assert actions[-8:] == ["investigate"] * 8
    assert priorities[:2] == ["P3", "P2"]
    assert priorities[-1] == "P1"
    stopped = escalation.open_escalation(past.declaration, past.workspace)
    assert stopped is not None
    assert (stopped.futile, stopped.priority, stopped.answers) == (2, "P1", ())
    assert "2 retrains in a row for drift did not help" in stopped.reason


def test_the_second_attempt_tunes_again(past: Past) -> None:
    past.window("inputs")
    past.window("inputs")
    first = past.retrain("inconclusive")
    past.window("inputs")
    past.window("inputs")
    second = past.retrain("inconclusive")
    assert [(d.action, d.tune, d.futile) for d in (first, second)] == [
        ("retrain", False, 0),
        ("retrain", True, 1),
    ]


def test_a_promoted_version_that_shows_it_again_was_futile_too(past: Past) -> None:
    past.window("performance")
    past.window("performance")
    assert past.retrain("promoted").cause == "performance"
    assert past.standing().futile == 0  # its first window has not been measured
    past.window("performance")
    assert (past.standing().futile, past.standing().priority) == (1, "P2")


def test_a_promoted_version_whose_first_window_is_clean_was_useful(past: Past) -> None:
    past.window("inputs")
    past.window("inputs")
    past.retrain("inconclusive")
    past.window("inputs")
    past.window("inputs")
    past.retrain("promoted")
    past.window()
    assert (past.standing().futile, past.standing().priority) == (0, None)


def test_what_went_away_by_itself_is_forgotten(past: Past) -> None:
    past.window("inputs")
    past.window("inputs")
    past.retrain("reject")
    past.window()
    past.window()
    assert past.standing().futile == 1
    past.window()
    assert (past.standing().futile, past.standing().priority) == (0, None)
    past.window("inputs")
    assert past.standing().futile == 0  # what is over doesn't come back


@pytest.mark.parametrize("outcome", ["failed", "abandoned", "refused", "declined"])
def test_a_run_that_claims_nothing_is_not_futile(past: Past, outcome: str) -> None:
    past.window("inputs")
    past.window("inputs")
    past.retrain(outcome)
    assert past.standing().futile == 0


def test_an_acknowledgement_lets_it_go_on_and_counts_anew(past: Past) -> None:
    for _ in range(6):
        past.window("inputs")
        past.retrain("reject")
    past.answer("acknowledged")
    assert past.standing().futile == 0
    past.window("inputs")
    assert past.retrain("reject").action == "retrain"
    assert past.standing().futile == 1


@pytest.mark.parametrize("said", ["declined", "unanswered"])
def test_no_and_silence_keep_it_stopped(past: Past, said: AnswerName) -> None:
    for _ in range(6):
        past.window("inputs")
        past.retrain("reject")
    past.answer(said)
    assert past.standing().priority == "P1"
    assert past.decide("later").action == "investigate"


def test_an_answer_is_kept_once_and_only_for_the_models_own(past: Past, tmp_path: Path) -> None:
    for _ in range(6):
        past.window("inputs")
        past.retrain("reject")
    past.answer("declined")
    past.answer("declined")
    found = escalation.open_escalation(past.declaration, past.workspace)
    assert found is not None
    assert found.answers == ("declined",)
    other = declare(tmp_path, name="other")
    with pytest.raises(ConflictError, match="other has no escalation"):
        escalation.answer(
            other, past.workspace, found.id, run_id="x", answer="acknowledged", person=None,
            comment="",
        )  # fmt: skip


def test_two_of_three_and_flapping(past: Past) -> None:
    """Bad, good, bad is two of three; with three of four, every other day never is enough."""
    past.window("inputs")
    assert past.decide().action == "suppress"
    past.window()
    assert past.decide().action == "suppress"
    past.window("inputs")
    assert past.decide().action == "retrain"


def test_every_other_day_is_never_three_of_four(tmp_path: Path) -> None:
    declared = declare(tmp_path, triggers={"drift": {"violations": 3, "of": 4}})
    past = Past(workspace_in(tmp_path), declared)
    past.promote("first")
    for day in range(12):
        past.window(*(["inputs"] if day % 2 else []))
        decision = past.decide()
        assert decision.action == "suppress"
    assert "drift: 2 of the last 4 windows violate" in decision.reasons[-1]


def test_windows_without_enough_to_judge_by_are_not_looked_at(past: Past) -> None:
    past.window("inputs")
    past.window(judged=False)
    past.window(judged=False)
    past.window("inputs")
    assert past.decide().action == "retrain"


def test_signals_about_a_version_that_is_not_live_are_closed(past: Past) -> None:
    """Raised while a retrain ran, or measured late: they say nothing about the new version."""
    key = past.window("inputs")
    past.window("inputs")
    past.promote("by hand")
    decision = past.decide()
    assert decision.action == "suppress"
    assert f"closed: drift in {key} was version 1's; version 2 is live" in decision.reasons
    with past.workspace.ledger.read() as session:
        assert not [s for s in records.open_signals(session, "example") if s.cause == "drift"]


def test_a_violation_that_more_labels_withdrew_is_closed(past: Past) -> None:
    key = past.window("performance")
    with past.workspace.ledger.write() as session:
        session.add(
            MeasurementRow(
                model="example", kind="performance", window=key, version="1", start=START,
                end=START + DAY, as_of=past.now, sequence=99, digest="", judged=True, violates=[],
                evidence={},
            )
        )  # fmt: skip
    past.window("performance")
    decision = past.decide()
    assert decision.action == "suppress"
    assert "performance: 1 of the last 3 windows violate (2013-01-02)" in decision.reasons[-1]
    with past.workspace.ledger.read() as session:  # still more labels may show that it does
        assert len(records.open_signals(session, "example")) == 2


def test_a_thousand_signals_make_one_run(past: Past) -> None:
    past.window()
    with past.workspace.ledger.write() as session:
        for number in range(1000):
            records.raise_signal(session, "example", "drift", f"other/{number}", past.now, {})
    decisions = [past.decide(f"event {number}").action for number in range(3)]
    assert decisions == ["retrain", "suppress", "suppress"]
    with past.workspace.ledger.read() as session:
        assert len(records.in_flight(session, "example")) == 1
        assert not records.open_signals(session, "example")


def test_nothing_new_to_learn_from_means_no_retrain(past: Past) -> None:
    """After a run that changed nothing, the same windows and new signals are not enough."""
    past.window("inputs")
    past.window("inputs")
    past.retrain("inconclusive")
    with past.workspace.ledger.write() as session:
        for number in range(2):
            records.raise_signal(session, "example", "drift", f"again/{number}", past.now, {})
    decision = past.decide("again")
    assert decision.action == "suppress"
    assert "nothing new to learn from" in decision.reasons[-1]


def test_a_version_that_came_back_is_judged_by_its_own_new_windows(past: Past) -> None:
    past.window("inputs")
    past.promote("second")
    past.window()
    with past.workspace.ledger.write() as session:
        live = records.champion(session, "example")
        assert live is not None
        back = {c.name: getattr(live, c.name) for c in live.__table__.columns if c.name != "id"}
        back |= {"position": 3, "version": "1", "run_id": "back", "kind": "rollback"}
        session.add(PromotionRow(**{**back, "as_of": past.now}))
    with past.workspace.ledger.read() as session:
        live = records.champion(session, "example")
        assert live is not None
        assert windows_of(session, live) == []
    assert any("before version 1 came back" in reason for reason in past.decide().reasons)


def test_what_a_person_is_asked_when_retraining_did_not_help(past: Past) -> None:
    for _ in range(6):
        past.window("inputs")
        past.retrain("reject")
    lines = _question(past.declaration, past.asked())
    assert any(line.startswith("Priority P1; 2 futile retrains in a row") for line in lines)
    assert not any("quarantine" in line for line in lines)
