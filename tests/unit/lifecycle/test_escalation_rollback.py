"""A rollback by machine stops automatic retraining; one by a person doesn't, but was futile."""

from __future__ import annotations

from typing import Any

from evergreen.ledger.tables import DecisionRow
from evergreen.lifecycle import escalation
from evergreen.lifecycle.windows import windows_of
from evergreen.operators.escalation import _question
from tests.past import Past


def drifting(past: Past, outcome: str) -> Any:
    """Two drifting days, and the retrain they ask for."""
    past.window("inputs")
    past.window("inputs")
    decision = past.retrain(outcome)
    assert decision.action == "retrain"
    return decision


def test_a_rollback_by_machine_stops_it_until_a_person_acknowledges(past: Past) -> None:
    past.verify()
    decision = drifting(past, "promoted")
    past.roll_back()
    asked, now = past.asked(), past.standing()
    assert (asked.cause, asked.run_id, asked.futile) == ("rollback", decision.run_id, 0)
    assert (now.priority, now.last) == ("P1", None)
    told = list(asked.describe())
    assert told[0] == f"P1: a version was sent back by machine; its retrain was {decision.run_id}"
    assert "version 2 was rolled back by machine, to version 1: its answers are NaN." in told[1]
    assert not any("futile" in line for line in told)
    past.window("inputs")
    past.window("inputs")
    stopped = past.decide()
    assert stopped.action == "investigate"
    assert "version 2 was rolled back by machine" in stopped.reasons[-2]
    past.answer("declined")
    past.window("inputs")
    assert past.decide().action == "investigate"
    past.answer("acknowledged")
    assert past.decide("again").action == "retrain"


def test_what_a_person_is_asked_after_a_rollback(past: Past) -> None:
    past.verify()
    drifting(past, "promoted")
    past.roll_back()
    lines = _question(past.declaration, past.asked())
    assert any("version 2 was rolled back by machine, to version 1" in line for line in lines)
    assert "A version that was rolled back stays quarantined." in lines
    assert not any("retrains in a row" in line for line in lines)


def test_a_rollback_by_a_person_stops_nothing_but_was_futile(past: Past) -> None:
    past.verify()
    decision = drifting(past, "promoted")
    past.window()  # it even looked mended
    assert past.standing().futile == 0
    past.roll_back(person="ann")
    assert escalation.open_escalation(past.declaration, past.workspace) is None
    now = past.standing()
    assert (now.futile, now.priority, now.last and now.last.run_id) == (1, "P2", decision.run_id)


def test_the_second_version_rolled_back_in_a_row_is_one_too_many(past: Past) -> None:
    past.verify()
    drifting(past, "promoted")
    past.roll_back(person="ann")
    drifting(past, "promoted")
    past.roll_back(person="ann", run_id="again")
    past.window("inputs")
    assert past.decide().action == "investigate"
    asked = past.asked()
    assert (asked.cause, asked.futile) == ("futile", 2)
    assert "version 4 went live and was rolled back" in asked.reason


def test_a_useful_retrain_stays_so_when_its_version_is_undone_at_another_promotion(
    past: Past,
) -> None:
    """Version 2 mended it; long after, it came back by a rollback, and that was undone."""
    past.verify()
    decision = drifting(past, "promoted")
    past.window()
    past.verify()
    past.promote("by hand")
    past.roll_back(person="ann", version="2", run_id="to 2")
    past.roll_back(person="ann", version="1", run_id="to 1")
    with past.workspace.ledger.read() as session:
        row = session.get_one(DecisionRow, decision.id)
        assert escalation.was_futile(session, past.declaration, row) is False


def test_an_acknowledged_rollback_counts_futile_retrains_anew(past: Past) -> None:
    """The retrain that put the version live may be long ago; futile ones came after it."""
    past.verify()
    drifting(past, "promoted")
    past.window()
    drifting(past, "reject")
    assert past.standing().futile == 1
    past.roll_back()
    assert past.asked().futile == 1
    past.answer("acknowledged")
    assert (past.standing().futile, past.standing().stopped) == (0, None)
    drifting(past, "reject")
    assert past.standing().futile == 1


def test_a_rollback_while_it_is_stopped_says_both(past: Past) -> None:
    past.verify()
    drifting(past, "promoted")
    past.window()
    for _ in range(6):
        past.window("inputs")
        past.retrain("reject")
    first = past.asked()
    past.roll_back()
    asked = past.asked()
    assert (asked.cause, asked.futile) == ("rollback", 2)
    assert asked.reason.endswith(
        f"Automatic retraining had stopped before that, too: {first.reason}"
    )
    past.answer("acknowledged")
    assert past.standing().stopped is None


def test_windows_of_a_champion_that_came_back_begin_with_its_return(past: Past) -> None:
    """Nothing that the undone version answered, nor its own past, speaks for it."""
    past.window("inputs")
    past.verify()
    drifting(past, "promoted")
    past.window("performance")
    past.window("performance")
    past.roll_back()
    past.answer("acknowledged")
    assert past.standing().priority is None
    decision = past.decide("returned")
    assert decision.action == "suppress"
    assert any("was version 2's; version 1 is live" in reason for reason in decision.reasons)
    live = past.promotion(1)
    assert (live.kind, live.as_of) == ("rollback", past.now)
    key = past.window("inputs")
    with past.workspace.ledger.read() as session:
        assert [window.key for window in windows_of(session, live)] == [key]
    past.window("inputs")
    assert past.decide("later").cause == "drift"
