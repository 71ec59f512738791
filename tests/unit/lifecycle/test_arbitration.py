"""The arbiter: laws of the pure decision, and what the ledger keeps of it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.declaration import Declaration
from evergreen.ledger import acts, records
from evergreen.ledger.tables import PartitionRow, PromotionRow
from evergreen.lifecycle.arbitration import arbitrate, conclude
from evergreen.lifecycle.contracts import Decision
from evergreen.lifecycle.triggers import CAUSES, Situation, Violated, decide
from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in

NOW = datetime(2013, 6, 1, tzinfo=UTC)
TRIGGERS = {
    "schedule": "@monthly",
    "new_data": {"min_rows": 100},
    "performance": {"violations": 2, "of": 3},
    "drift": {"violations": 2, "of": 3},
    "cooldown": "7d",
    "budget": {"runs": 2, "per": "30d"},
}
past = st.lists(st.integers(0, 90).map(lambda days: NOW - timedelta(days=days)), max_size=5).map(
    sorted
)
violated = st.lists(st.sampled_from(["w1", "w2", "w3"]), unique=True).map(
    lambda keys: Violated(("w1", "w2", "w3"), tuple(keys))
)
situations = st.builds(
    Situation,
    as_of=st.just(NOW),
    causes=st.frozensets(st.sampled_from(CAUSES)),
    new_rows=st.integers(0, 300),
    violated=st.fixed_dictionaries({"performance": violated, "drift": violated}),
    stopped=st.sampled_from([None, None, "2 retrains in a row did not help"]),
    paused=st.sampled_from([None, None, "paused by vera: a new schema lands"]),
    trained=past,
    spent=past,
    in_flight=st.lists(st.just("other"), max_size=1),
)
# Apart, since what is disproved is rolled back whatever the other laws say.
disproved = situations.flatmap(
    lambda situation: st.builds(
        replace,
        st.just(situation),
        disproved=st.sampled_from([None, "version 2 was disproved"]),
        restores=st.sampled_from([None, "1"]),
    )
)


def declared(**triggers: Any) -> Declaration:
    return declare(Path(), triggers={**TRIGGERS, **triggers})


@given(situations)
def test_never_two_at_once(situation: Situation) -> None:
    answer = decide(declared(), replace(situation, in_flight=["other"]))
    assert answer.action == "suppress"
    assert "other" in answer.reasons[0]


@given(situations)
def test_nobody_asking_means_no_retrain(situation: Situation) -> None:
    assert decide(declared(), replace(situation, causes=frozenset())).action != "retrain"


@given(situations)
def test_what_is_stopped_only_a_person_starts(situation: Situation) -> None:
    stopped = replace(situation, stopped="it did not help", in_flight=())
    answer = decide(declared(), stopped)
    assert answer.action == ("retrain" if "manual" in situation.causes else "investigate")


@given(disproved)
def test_what_is_paused_only_a_person_starts(situation: Situation) -> None:
    answer = decide(declared(), replace(situation, paused="paused by vera: audit"))
    if "manual" not in situation.causes:
        assert answer.action != "retrain"
    elif not situation.in_flight:
        assert answer.action == "retrain"


@given(disproved)
def test_a_pause_only_ever_takes_the_place_of_a_retrain_or_a_suppression(
    situation: Situation,
) -> None:
    """So that resuming gives exactly what would have been decided without it."""
    free = decide(declared(), replace(situation, paused=None))
    held = decide(declared(), replace(situation, paused="paused by vera: audit"))
    if held != free:
        assert held.action == "suppress"
        assert held.reasons[0] == "paused by vera: audit"
        assert "`evergreen resume example`" in held.reasons[1]
        assert held.until is None
        assert free.action in {"retrain", "suppress"}
        assert "manual" not in situation.causes


@given(disproved)
def test_a_pause_holds_neither_a_rollback_nor_an_escalation(situation: Situation) -> None:
    free = decide(declared(), replace(situation, paused=None))
    if free.action in {"rollback", "investigate"}:
        assert decide(declared(), replace(situation, paused="paused by vera: audit")) == free


@given(situations)
def test_drift_and_performance_need_their_violations_and_something_to_learn(
    situation: Situation,
) -> None:
    answer = decide(declared(), situation)
    if answer.cause in {"performance", "drift"}:
        assert len(situation.violated[answer.cause].violating) >= 2
        assert situation.new_rows > 0


@given(situations, st.sampled_from(["performance", "drift"]))
def test_more_violations_never_stop_a_retrain(situation: Situation, cause: str) -> None:
    more = {**situation.violated, cause: Violated(("w1", "w2", "w3"), ("w1", "w2", "w3"))}
    if decide(declared(), situation).action == "retrain":
        assert decide(declared(), replace(situation, violated=more)).action == "retrain"


@given(situations)
def test_a_person_is_heard_unless_a_run_is_under_way(situation: Situation) -> None:
    asked = replace(situation, causes=situation.causes | {"manual"}, in_flight=())
    assert decide(declared(), asked).cause == "manual"


@given(situations)
def test_cooldown_and_budget_hold_every_automatic_retrain(situation: Situation) -> None:
    answer = decide(declared(), replace(situation, causes=situation.causes - {"manual"}))
    if answer.action == "retrain":
        assert all(NOW - moment >= timedelta(days=7) for moment in situation.trained)
        assert sum(NOW - moment < timedelta(days=30) for moment in situation.spent) < 2


@given(situations)
def test_held_back_until_a_moment_means_free_at_that_moment(situation: Situation) -> None:
    automatic = replace(situation, causes=situation.causes - {"manual"})
    answer = decide(declared(), automatic)
    steps = 0
    while answer.until is not None and steps < 20:  # cooldown first, then budget, then the next
        assert answer.until > automatic.as_of
        automatic = replace(automatic, as_of=answer.until)
        answer = decide(declared(), automatic)
        steps += 1
    assert answer.until is None


@given(situations)
def test_an_answer_always_says_why(situation: Situation) -> None:
    answer = decide(declared(), situation)
    assert all(answer.reasons)
    assert answer.reasons
    assert (answer.cause in CAUSES) == (answer.action == "retrain")


def test_before_the_first_version_data_alone_is_enough() -> None:
    """A model that only watches would wait for ever for its first version to go bad."""
    watching = declared(schedule=None, new_data=None)
    first = Situation(as_of=NOW, causes=frozenset({"new_data"}), new_rows=100, bootstrapped=False)
    assert decide(watching, first).cause == "new_data"
    assert decide(watching, replace(first, new_rows=99)).action == "suppress"
    assert decide(watching, replace(first, bootstrapped=True)).action == "suppress"


def test_too_few_rows_are_told_with_both_numbers() -> None:
    situation = Situation(as_of=NOW, causes=frozenset({"new_data"}), new_rows=99)
    answer = decide(declared(schedule=None), situation)
    assert answer.action == "suppress"
    assert "99 labels matured" in answer.reasons[0]
    assert "100 needed" in answer.reasons[0]


# through the ledger


def land(workspace: Workspace, key: str, rows: int = 200, revision: int = 1) -> None:
    start = datetime.fromisoformat(f"{key}T00:00:00+00:00")
    end = start + timedelta(days=1)
    with workspace.ledger.write() as session:
        row = PartitionRow(
            model="example",
            key=key,
            revision=revision,
            start=start,
            end=end,
            digest=key,
            rows=rows,
            late=False,
            files={},
            maturity={end.isoformat(): rows},
        )
        records.put(session, row, "model", "key", "revision")
        records.raise_signal(session, "example", "new_data", f"{key}/{revision}", end, {})


def ask(workspace: Workspace, run_id: str, **kwargs: Any) -> Decision:
    return arbitrate(declared(schedule=None), workspace, run_id=run_id, **kwargs)


def test_asking_again_gives_the_first_answer(workspace: Workspace) -> None:
    land(workspace, "2013-01-01")
    first = ask(workspace, "run 1")
    land(workspace, "2013-02-01")
    assert ask(workspace, "run 1") == first
    assert (first.action, first.cause, first.sequence) == ("retrain", "new_data", 1)


def test_a_retrain_consumes_signals_and_blocks_the_next_until_it_ends(workspace: Workspace) -> None:
    land(workspace, "2013-01-01")
    ask(workspace, "run 1")
    land(workspace, "2013-02-01")
    held = ask(workspace, "run 2")
    assert held.action == "suppress"
    assert "run 1" in held.reasons[0]
    with workspace.ledger.read() as session:
        assert [s.key for s in records.open_signals(session, "example")] == ["2013-02-01/1"]


def test_a_failed_run_gives_its_signals_back(workspace: Workspace) -> None:
    land(workspace, "2013-01-01")
    ask(workspace, "run 1")
    assert conclude(declared(), workspace, "run 1") == "failed"
    with workspace.ledger.read() as session:
        assert len(records.open_signals(session, "example")) == 1
    assert ask(workspace, "run 2").action == "retrain"


def test_a_run_killed_before_its_end_is_closed_by_the_next(workspace: Workspace) -> None:
    land(workspace, "2013-01-01")
    ask(workspace, "run 1")
    assert ask(workspace, "run 2").action == "suppress"
    assert ask(workspace, "run 3", run_state=lambda run_id: "failed").action == "retrain"


@pytest.mark.parametrize("reason", [{"refused": "blocked data"}, {"declined": "declined by vera"}])
def test_a_refusal_keeps_the_signals_answered(workspace: Workspace, reason: dict[str, str]) -> None:
    land(workspace, "2013-01-01")
    ask(workspace, "run 1")
    assert conclude(declared(), workspace, "run 1", **reason) == next(iter(reason))
    with workspace.ledger.read() as session:
        assert not records.open_signals(session, "example")
    assert ask(workspace, "run 2").reasons == ("nothing asks for a retrain",)


def test_a_run_that_failed_and_was_cleared_counts_as_what_it_became(workspace: Workspace) -> None:
    land(workspace, "2013-01-01")
    first = ask(workspace, "run 1")
    conclude(declared(), workspace, "run 1")
    with workspace.ledger.write() as session:
        session.add(
            PromotionRow(
                model="example",
                position=1,
                run_id="run 1",
                version="1",
                replaced=None,
                kind="bootstrap",
                reason="",
                as_of=first.as_of,
                mlflow_run="r",
                model_uri="u",
                snapshot_uri="s",
                snapshot_digest="d",
                trained_through=first.as_of,
            )
        )
    assert conclude(declared(), workspace, "run 1") == "promoted"
    assert conclude(declared(), workspace, "run 1") == "promoted"
    with workspace.ledger.read() as session:
        assert not records.open_signals(session, "example")


def test_only_rows_that_matured_since_the_last_training_count(workspace: Workspace) -> None:
    land(workspace, "2013-01-01", rows=150)
    ask(workspace, "run 1")
    conclude(declared(), workspace, "run 1", declined="for the test")
    land(workspace, "2013-01-02", rows=60)
    later = ask(workspace, "run 2", as_of=datetime(2013, 3, 1, tzinfo=UTC))
    assert later.action == "suppress"
    assert "60 labels matured" in later.reasons[0]


def test_a_refused_run_was_no_training(workspace: Workspace) -> None:
    """Its rows still wait to be learned from, and it starts no cooldown."""
    land(workspace, "2013-01-01", rows=150)
    ask(workspace, "run 1")
    conclude(declared(), workspace, "run 1", refused="data is blocked")
    land(workspace, "2013-01-02", rows=60)
    assert ask(workspace, "run 2").action == "retrain"


def test_without_data_nothing_is_decided(workspace: Workspace) -> None:
    assert "no data is registered" in ask(workspace, "run 1").reasons[0]


def test_a_schedule_is_due_once_per_tick(workspace: Workspace) -> None:
    land(workspace, "2013-01-31", rows=1)
    scheduled = declared(new_data=None, cooldown="0d", budget=None)
    assert arbitrate(scheduled, workspace, run_id="run 1").cause == "schedule"
    conclude(scheduled, workspace, "run 1", refused="for the test")
    assert arbitrate(scheduled, workspace, run_id="run 2").action == "suppress"
    land(workspace, "2013-02-28", rows=1)
    assert arbitrate(scheduled, workspace, run_id="run 3").cause == "schedule"


def test_a_lost_run_that_a_person_wanted_is_not_repeated_by_the_machine(
    workspace: Workspace,
) -> None:
    """It would crash again at every event, past cooldown, budget and stop."""
    land(workspace, "2013-01-01", rows=1)
    wish = {"user": "ann", "reason": "try"}
    watching = declared(new_data=None, schedule=None)
    asked = arbitrate(watching, workspace, run_id="by hand", manual=wish)
    assert asked.cause == "manual"
    conclude(watching, workspace, "by hand")
    later = arbitrate(watching, workspace, run_id="an event")
    assert later.action == "suppress"
    assert "closed: manual: by hand ended without a verdict" in later.reasons[0]
    again = arbitrate(watching, workspace, run_id="by hand again", manual=wish)
    assert again.cause == "manual"


def pause(workspace: Workspace, key: str = "pause") -> None:
    with workspace.ledger.write() as session:
        acts.pause(session, "example", key=key, person="vera", comment="audit")


def resume(workspace: Workspace) -> None:
    with workspace.ledger.write() as session:
        acts.resume(session, "example", key="resume", person="ann", comment="")


def told(decision: Decision) -> dict[str, Any]:
    """A decision, whatever run made it."""
    return decision.model_dump(exclude={"id", "run_id"})


def test_a_pause_loses_nothing(workspace: Workspace, tmp_path: Path) -> None:
    """What was landed and decided meanwhile: the same as in a ledger that nobody paused."""
    scheduled = declared(drift=None, performance=None)
    never = workspace_in(tmp_path / "never paused")
    land(never, "2013-01-01", rows=150)
    land(workspace, "2013-01-01", rows=150)
    pause(workspace)
    for key in ("2013-01-02", "2013-02-01"):
        held = arbitrate(scheduled, workspace, run_id=f"before {key}")
        assert (held.action, held.cause, held.until) == ("suppress", None, None)
        assert held.reasons[-2:] == (
            "paused by vera: audit",
            "resume in Models, or by `evergreen resume example`",
        )
        land(never, key)
        land(workspace, key)
    with workspace.ledger.read() as session:
        assert {s.cause for s in records.open_signals(session, "example")} == {
            "new_data",
            "schedule",
        }
    resume(workspace)
    then = arbitrate(scheduled, workspace, run_id="then")
    assert then.action == "retrain"
    assert told(then) == told(arbitrate(scheduled, never, run_id="at once"))


def test_a_decision_made_before_a_pause_stays_and_its_run_holds_the_next(
    workspace: Workspace,
) -> None:
    land(workspace, "2013-01-01")
    first = ask(workspace, "run 1")
    pause(workspace)
    assert ask(workspace, "run 1") == first
    assert "run 1" in ask(workspace, "run 2").reasons[0]
    conclude(declared(), workspace, "run 1")  # failed: its signals are open again
    assert ask(workspace, "run 3").reasons[0] == "paused by vera: audit"
    resume(workspace)
    assert ask(workspace, "run 4").action == "retrain"


def test_a_person_retrains_what_is_paused(workspace: Workspace) -> None:
    land(workspace, "2013-01-01")
    pause(workspace)
    asked = ask(workspace, "by hand", manual={"user": "ann", "reason": "try"})
    assert (asked.action, asked.cause) == ("retrain", "manual")
    conclude(declared(), workspace, "by hand", declined="for the test")
    land(workspace, "2013-03-01")
    assert ask(workspace, "an event").reasons[0] == "paused by vera: audit"
