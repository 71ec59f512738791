"""When retraining doesn't help: what is futile, when it stops, and what a person changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from evergreen.declaration import Declaration
from evergreen.errors import ConflictError
from evergreen.ledger import records
from evergreen.ledger.tables import DecisionRow, MeasurementRow, PartitionRow, PromotionRow
from evergreen.lifecycle import escalation, golive, rollback
from evergreen.lifecycle.arbitration import arbitrate
from evergreen.lifecycle.contracts import EscalationReport, Rollback
from evergreen.lifecycle.windows import windows_of
from evergreen.operators.escalation import _question
from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in

START = datetime(2013, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass
class Past:
    """A model's past, written straight into its ledger, a day at a time."""

    workspace: Workspace
    declaration: Declaration
    day: int = 0
    version: int = 0
    signals: dict[str, int] = field(default_factory=dict)

    @property
    def now(self) -> datetime:
        return START + self.day * DAY

    def window(self, *violates: str, judged: bool = True) -> str:
        """A day that the live version answered, landed and measured."""
        start, self.day = self.now, self.day + 1
        key = f"{start:%Y-%m-%d}"
        kind = "performance" if {"performance", "target", "concept"} & {*violates} else "drift"
        maturity = {self.now.isoformat(): 100}
        with self.workspace.ledger.write() as session:
            session.add(
                PartitionRow(
                    model="example", key=key, revision=1, start=start, end=self.now, digest=key,
                    rows=100, late=False, files={}, maturity=maturity, source="data",
                )
            )  # fmt: skip
            for each in ("drift", "performance"):
                session.add(
                    MeasurementRow(
                        model="example", kind=each, window=key, version=str(self.version),
                        start=start, end=self.now, as_of=self.now, sequence=self.day,
                        digest="", judged=judged, violates=[*violates] if each == kind else [], evidence={},
                    )
                )  # fmt: skip
            for cause in {"performance" if v == "performance" else "drift" for v in violates}:
                evidence = {"window": key, "version": str(self.version)}
                records.raise_signal(
                    session, "example", cause, f"{key}/{self.version}", self.now, evidence
                )
        return key

    def promote(self, run_id: str) -> None:
        with self.workspace.ledger.write() as session:
            live = records.champion(session, "example")
            position = live.position + 1 if live else 1
            self.version = position
            session.add(
                PromotionRow(
                    model="example", position=position, run_id=run_id,
                    version=str(self.version), replaced=None, kind="promote", reason="better",
                    as_of=self.now, mlflow_run="r", model_uri="u", snapshot_uri="s",
                    snapshot_digest="d", trained_through=self.now, origin={},
                )
            )  # fmt: skip

    def decide(self, run_id: str | None = None) -> Any:
        return arbitrate(self.declaration, self.workspace, run_id=run_id or f"run {self.day}")

    def retrain(self, outcome: str) -> Any:
        """Decide, and end the run so, when it is one."""
        decision = self.decide()
        if decision.action == "retrain":
            if outcome == "promoted":
                self.promote(decision.run_id)
            with self.workspace.ledger.write() as session:
                row = session.get_one(DecisionRow, decision.id)
                records.conclude(session, row, outcome, "for the test")
        return decision

    def promotion(self, version: int) -> PromotionRow:
        with self.workspace.ledger.read() as session:
            row = records.promotion_of_version(session, "example", str(version))
        assert row is not None
        return row

    def roll_back(
        self, *, person: str | None = None, version: str | None = None, run_id: str | None = None
    ) -> Rollback:
        """Return to an earlier version, where nothing has to follow the ledger's row."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(golive, "carry_out", lambda *_: golive.Carried())
            done = rollback.roll_back(
                self.declaration, self.workspace, run_id=run_id or f"rollback {self.day}",
                reason="its answers are NaN", person=person, version=version,
            )  # fmt: skip
        self.version = int(done.version)
        return done

    def verify(self) -> None:
        with self.workspace.ledger.write() as session:
            live = records.champion(session, "example")
            assert live is not None
            records.add_event(session, live, "verified", {})

    def asked(self) -> EscalationReport:
        found = escalation.open_escalation(self.declaration, self.workspace)
        assert found is not None
        return found

    def standing(self) -> escalation.Standing:
        with self.workspace.ledger.read() as session:
            return escalation.standing(session, self.declaration)

    def answer(self, said: str) -> None:
        escalation.answer(
            self.declaration, self.workspace, self.asked().id, run_id=f"answer {self.day}",
            answer=said, person="ann", comment="seen",  # type: ignore[arg-type]  # a parameter
        )  # fmt: skip


@pytest.fixture
def past(tmp_path: Path) -> Past:
    """Version 1 is live; two of three drifting, or bad, days ask for a retrain."""
    often = {"violations": 2, "of": 3}
    declared = declare(tmp_path, triggers={"drift": often, "performance": often})
    begun = Past(workspace_in(tmp_path), declared)
    begun.promote("first")
    return begun


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
def test_no_and_silence_keep_it_stopped(past: Past, said: str) -> None:
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


def test_what_a_person_is_asked_when_retraining_did_not_help(past: Past) -> None:
    for _ in range(6):
        past.window("inputs")
        past.retrain("reject")
    lines = _question(past.declaration, past.asked())
    assert any(line.startswith("Priority P1; 2 futile retrains in a row") for line in lines)
    assert not any("quarantine" in line for line in lines)


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
