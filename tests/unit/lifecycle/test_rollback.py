"""Going back: once, to a version that proved itself, with the bad one kept away from machines."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from evergreen.errors import ConflictError, EvergreenError, RollbackError
from evergreen.foreground import Foreground
from evergreen.ledger import Ledger, records
from evergreen.ledger.tables import (
    DecisionRow,
    EscalationRow,
    PromotionEventRow,
    PromotionRow,
    QuarantineRow,
    Table,
)
from evergreen.lifecycle import escalation, golive, registry
from evergreen.lifecycle import rollback as rolling
from evergreen.lifecycle.arbitration import arbitrate, conclude
from evergreen.lifecycle.contracts import Decision, Rollback, Verdict
from evergreen.lifecycle.rollback import disproved, roll_back
from evergreen.lifecycle.windows import windows_of
from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in
from tests.lifelike import Life

START = datetime(2013, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Lived:
    """Three versions went live, in a life that every test here begins with."""

    life: Life
    rival: tuple[Decision, Verdict, Foreground]  # judged against the third, and not promoted


def candidate(life: Life, run_id: str) -> tuple[Decision, Verdict, Foreground]:
    """A real candidate; the gate, which takes a process of its own, is taken to have passed it."""
    decision = life.decide(run_id)
    run = Foreground(life.declaration, life.workspace, decision.as_of, decision)
    live = run.champion
    verdict = Verdict(
        model="example",
        verdict="promote",
        promotes=True,
        reason="for the test",
        rules=(),
        primary="log_loss",
        champion_version=live.version if live else None,
        champion_position=live.position if live else 0,
        mlflow_run=run.trained.mlflow_run,
    )
    return decision, verdict, run


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    life = Life.begin(tmp_path_factory.mktemp("life"))
    life.land(1)
    for number in (1, 2, 3):
        life.land(number + 1)
        life.promote(*candidate(life, f"run {number}"))
        conclude(life.declaration, life.workspace, f"run {number}")
    life.land(5)
    return Lived(life, candidate(life, "rival"))


@pytest.fixture
def life(lived: Lived, tmp_path: Path) -> Life:
    """The same life with a ledger of its own; versions 1 and 2 are verified."""
    own = tmp_path / "ledger.db"
    lived.life.workspace.ledger.engine.dispose()  # so that all of it is in the one file
    shutil.copy(lived.life.workspace.home / "ledger.db", own)
    workspace = replace(lived.life.workspace, ledger=Ledger(f"sqlite:///{own}"))
    for position in (1, 2):
        note(workspace, position, "verified")
    registry.set_champion(workspace, lived.life.declaration, "3")
    return Life(lived.life.declaration, workspace)


def note(workspace: Workspace, position: int, event: str) -> None:
    with workspace.ledger.write() as session:
        row = session.scalars(select(PromotionRow).filter_by(position=position)).one()
        records.add_event(session, row, event, {"part": "labels", "reason": "for the test"})


def back(life: Life, run_id: str = "rollback/a", reason: str = "bad", **asked: Any) -> Rollback:
    return roll_back(life.declaration, life.workspace, run_id=run_id, reason=reason, **asked)


def rows(life: Life, table: type[Table]) -> list[Any]:
    with life.workspace.ledger.read() as session:
        return list(session.scalars(select(table).order_by(table.id)))


def counts(life: Life) -> tuple[int, ...]:
    tables = (PromotionRow, QuarantineRow, EscalationRow, DecisionRow, PromotionEventRow)
    with life.workspace.ledger.read() as session:
        return tuple(session.scalar(select(func.count()).select_from(t)) or 0 for t in tables)


def test_the_last_verified_version_comes_back_as_it_was(life: Life) -> None:
    done = back(life, reason="labels say so")
    _, second, third, row = rows(life, PromotionRow)
    assert (row.version, row.replaced, row.position, row.kind) == ("2", "3", 4, "rollback")
    same = ("mlflow_run", "model_uri", "snapshot_uri", "snapshot_digest", "trained_through")
    for name in (*same, "origin"):
        assert getattr(row, name) == getattr(second, name)
    with life.workspace.ledger.read() as session:
        events = records.events_of(session, row.id)
        assert row.as_of == records.watermark(session, "example") > third.as_of
    assert events["verified"] == {"by": "earlier"}
    assert {"aliased", "materialized", "profiled", "completed"} <= set(events)
    assert registry.champion_version(life.workspace, life.declaration) == "2"
    (left,) = rows(life, QuarantineRow)
    assert (left.version, left.promotion_id, left.person, left.reason) == (
        "3", third.id, None, "labels say so",
    )  # fmt: skip
    assert (done.version, done.replaced, done.quarantined, done.verified) == ("2", "3", True, True)
    assert "asked by the machine: labels say so" in done.describe()


@pytest.mark.parametrize(("tried", "stays"), [("3", False), ("2", False), ("1", True)])
def test_what_is_live_or_quarantined_is_no_candidate_any_more(
    life: Life, tried: str, stays: bool
) -> None:
    """Version 3 goes, version 2 comes back: neither answers a share beside the champion."""
    registry.set_alias(life.workspace, "example", registry.CANDIDATE, tried)
    assert back(life).version == "2"
    left = registry.alias_version(life.workspace, "example", registry.CANDIDATE)
    assert left == (tried if stays else None)
    registry.delete_alias(life.workspace, "example", registry.CANDIDATE)


def test_a_rollback_is_never_before_what_it_replaces(life: Life) -> None:
    """A promotion may have run ahead of the data, by an As of."""
    with life.workspace.ledger.write() as session:
        live = records.champion(session, "example")
        assert live is not None
        live.as_of += timedelta(days=30)
        ahead = live.as_of
    assert back(life).as_of == ahead


def test_a_machine_opens_an_escalation_with_the_retrain_that_put_it_live(life: Life) -> None:
    back(life, reason="7 of 100 answers failed.")
    (stop,) = rows(life, EscalationRow)
    decision = {row.id: row.run_id for row in rows(life, DecisionRow)}[stop.decision_id]
    assert (stop.cause, stop.priority, stop.futile, decision) == ("rollback", "P1", 0, "run 3")
    asked = escalation.open_escalation(life.declaration, life.workspace)
    assert asked is not None
    assert (asked.cause, asked.run_id) == ("rollback", "run 3")
    assert asked.reason.startswith(
        "version 3 was rolled back by machine, to version 2: 7 of 100 answers failed. It had"
    )
    conclude(life.declaration, life.workspace, "rival")
    assert life.decide("next").action == "investigate"
    escalation.answer(
        life.declaration, life.workspace, asked.id, run_id="x", answer="acknowledged",
        person="ann", comment="a broken feed",
    )  # fmt: skip
    assert escalation.open_escalation(life.declaration, life.workspace) is None
    assert life.decide("after").action == "retrain"


def test_a_person_opens_none_and_is_named(life: Life) -> None:
    done = back(life, person="ann", reason="  customers call ")
    assert (done.person, done.reason) == ("ann", "customers call")
    (left,) = rows(life, QuarantineRow)
    assert (left.person, left.run_id) == ("ann", "rollback/a")
    assert not rows(life, EscalationRow)
    conclude(life.declaration, life.workspace, "rival")
    assert life.decide("next").action == "retrain"


KILLS: dict[str, tuple[Any, str]] = {
    "before the quarantine": (records, "put"),
    "before the row is verified": (records, "add_event"),
    "before the escalation": (rolling, "_decisions"),
    "before the alias": (registry, "set_champion"),
    "before online features": (golive.features, "materialize"),
    "before the profile": (golive, "reference_profile"),
    "before the replicas": (golive.servers, "wait_until_served"),
    "before the report": (rolling, "_report"),
}


@pytest.mark.parametrize("moment", KILLS)
def test_killed_anywhere_and_run_again_it_happens_once(
    life: Life, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt  # as near as a thread comes to being killed

    before = counts(life)
    with monkeypatch.context() as patch:
        patch.setattr(*KILLS[moment], killed)
        with pytest.raises(KeyboardInterrupt):
            back(life)
    halfway = counts(life)[:3]
    assert halfway in {before[:3], tuple(n + 1 for n in before[:3])}  # all of it, or nothing
    done = back(life)
    settled = counts(life)
    assert settled[:4] == (before[0] + 1, before[1] + 1, before[2] + 1, before[3])
    assert back(life) == done
    assert counts(life) == settled
    assert registry.champion_version(life.workspace, life.declaration) == "2"


def test_asking_again_carries_out_and_never_goes_further_back(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that was killed, or given twice, or just after the machine, means one rollback."""
    with monkeypatch.context() as killed:
        killed.setattr(golive, "carry_out", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            back(life, "cli/1", person="ann")
    assert registry.champion_version(life.workspace, life.declaration) == "3"
    done = back(life, "cli/2", person="bob")
    assert (done.version, done.position, done.person) == ("2", 4, "ann")
    assert registry.champion_version(life.workspace, life.declaration) == "2"
    with pytest.raises(RollbackError, match=r"version 2 has come back already: ann rolled back"):
        back(life, "cli/3", person="bob")
    assert len(rows(life, PromotionRow)) == 4
    assert back(life, "cli/4", person="bob", version="1").version == "1"


def test_what_a_killed_run_left_is_finished_by_who_comes_next(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(golive, "carry_out", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            back(life)
    assert golive.finish(life.declaration, life.workspace) is not None
    assert registry.champion_version(life.workspace, life.declaration) == "2"
    assert golive.finish(life.declaration, life.workspace) is None


def test_the_arbiter_sends_a_disproved_version_back(life: Life) -> None:
    note(life.workspace, 3, "disproved")
    decision = arbitrate(life.declaration, life.workspace, run_id="next", run_state=lambda _: None)
    assert decision.action == "rollback"
    assert "version 3 was disproved: for the test" in decision.reasons
    assert "version 2 is the last verified one: back to it" in decision.reasons


def test_a_named_version_that_was_never_verified_bakes_again(life: Life) -> None:
    with life.workspace.ledger.write() as session:
        session.query(PromotionEventRow).filter_by(event="verified").delete()
    done = back(life, person="ann", version="1")
    assert (done.version, done.verified) == ("1", False)
    with life.workspace.ledger.read() as session:
        live = records.champion(session, "example")
        assert live is not None
        assert "verified" not in records.events_of(session, live.id)


def test_a_version_verified_at_any_of_its_promotions_stays_verified(life: Life) -> None:
    back(life, "rollback/a", person="ann", version="1")
    again = back(life, "rollback/b", person="ann", version="2")
    assert (again.verified, again.replaced) == (True, "1")
    with life.workspace.ledger.read() as session:
        assert set(records.quarantined(session, "example")) == {"3", "1"}
        assert records.last_verified(session, "example", besides=["2"]) is None


def refused(life: Life, **asked: Any) -> str:
    before = counts(life)
    with pytest.raises(RollbackError) as caught:
        back(life, **asked)
    assert counts(life) == before
    assert registry.champion_version(life.workspace, life.declaration) == "3"
    return str(caught.value)


def test_without_a_verified_version_it_says_which_there_are(life: Life) -> None:
    with life.workspace.ledger.write() as session:
        session.query(PromotionEventRow).filter_by(event="verified").delete()
    told = refused(life)
    assert "3 (not verified), 2 (not verified), 1 (not verified)" in told
    assert "--version" in told


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"version": "9"}, r"version 9 was never live; those that were are 3 \(not"),
        ({"version": "3"}, "version 3 is live already"),
        ({"reason": "  "}, "a rollback needs a reason"),
        ({"force": True, "version": "1"}, "only a person may force"),
        ({"run_id": "run 2"}, "run 2 put version 2 live and is no rollback"),
    ],
)
def test_what_is_refused_changes_nothing(life: Life, asked: dict[str, Any], says: str) -> None:
    assert re.search(says, refused(life, **asked))


def test_nothing_is_live_nothing_to_roll_back(tmp_path: Path) -> None:
    empty = Life(declare(tmp_path), workspace_in(tmp_path))
    with pytest.raises(RollbackError, match="no version is live"):
        back(empty)


def test_a_quarantined_version_comes_back_by_force_of_a_person_only(life: Life) -> None:
    back(life, "rollback/a", reason="it fails")  # 3 goes
    with pytest.raises(
        RollbackError, match=r"quarantined since rollback/a, by the machine: it fails.*`force`"
    ):
        back(life, "rollback/b", person="ann", version="3")
    done = back(life, "rollback/b", person="ann", version="3", force=True)
    assert (done.version, done.verified) == ("3", False)
    with life.workspace.ledger.read() as session:
        barred = records.quarantined(session, "example")
    assert set(barred) == {"3", "2"}
    assert barred["3"].reason == "it fails"  # why it was put away first is what stays
    assert back(life, "rollback/c").version == "1"  # by machine: neither of them


def test_the_machine_undoes_only_the_promotion_it_meant(life: Life) -> None:
    """Version 2 was disproved, but by now version 3 is live."""
    note(life.workspace, 2, "disproved")
    found = disproved(life.declaration, life.workspace)
    assert found is not None
    meant, why = found
    assert (meant.position, why) == (2, "disproved by labels: for the test")
    with pytest.raises(ConflictError, match=r"wanted to roll back because: bad\..*now version 3"):
        back(life, position=meant.position)
    assert len(rows(life, PromotionRow)) == 3
    assert back(life, position=3).replaced == "3"
    assert back(life, position=3).replaced == "3"  # a repeat asks nothing of what is live now


def test_a_promotion_between_look_and_write_is_told(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL a promotion may be written in between; here by looking at an old champion."""
    look = records.champion
    with life.workspace.ledger.read() as session:
        old = records.former(session, look(session, "example"))  # type: ignore[arg-type]  # it is live
    looks = iter([old])
    monkeypatch.setattr(
        records, "champion", lambda session, model, *a: next(looks, None) or look(session, model)
    )
    with pytest.raises(ConflictError, match="live is now version 3, by run 3"):
        back(life, version="1", person="ann")
    assert len(rows(life, PromotionRow)) == 3


@pytest.mark.parametrize("attempt", range(3))
def test_of_a_rollback_and_a_promotion_at_once_one_wins(
    life: Life, lived: Lived, attempt: int
) -> None:
    _, verdict, _ = lived.rival
    start, said = threading.Barrier(2), dict[str, Any]()

    def promote() -> Any:
        return life.promote(*lived.rival)

    def returning() -> Any:
        return back(life, position=3)

    def go(name: str, act: Callable[[], Any]) -> None:
        start.wait(30)
        try:
            said[name] = act()
        except EvergreenError as error:
            said[name] = error

    threads = [
        threading.Thread(target=go, args=pair)
        for pair in (("promotion", promote), ("rollback", returning))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    told = [each for each in said.values() if isinstance(each, Exception)]
    assert len(said) == 2
    assert len(told) == 1
    assert isinstance(told[0], ConflictError)
    *_, newest = rows(life, PromotionRow)
    assert newest.position == 4
    assert newest.kind == ("rollback" if told[0] is said["promotion"] else verdict.verdict)
    assert registry.champion_version(life.workspace, life.declaration) == newest.version
    assert bool(rows(life, QuarantineRow)) == (newest.kind == "rollback")


def test_the_champion_that_came_back_is_judged_against_next(life: Life) -> None:
    back(life, person="ann")
    life.land(6)
    decision, verdict, run = candidate(life, "run 4")
    assert verdict.champion_version == "2"
    assert verdict.champion_position == 4
    promoted = life.promote(decision, verdict, run)
    assert promoted.replaced == "2"
    with life.workspace.ledger.read() as session:
        live = records.champion(session, "example")
        assert live is not None
        assert windows_of(session, live) == []


def bare(folder: Path, versions: int) -> Life:
    """A life of promotions only, in the ledger: nothing to carry out."""
    life = Life(declare(folder), workspace_in(folder))
    with life.workspace.ledger.write() as session:
        for number in range(1, versions + 1):
            session.add(
                PromotionRow(
                    model="example", position=number, run_id=f"run {number}", version=str(number),
                    replaced=None, kind="promote", reason="better", mlflow_run="r", model_uri="u",
                    as_of=START + number * timedelta(days=1), snapshot_uri="s",
                    snapshot_digest="d", trained_through=START, origin={},
                )
            )  # fmt: skip
    return life


def test_each_rollback_by_machine_asks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An acknowledged escalation about the same decision must not hide the next one."""
    monkeypatch.setattr(golive, "carry_out", lambda *_: golive.Carried())
    life = bare(tmp_path, 4)
    for position in (1, 2, 3):
        note(life.workspace, position, "verified")
    for number in (1, 2, 3):
        back(life, f"rollback/{number}")
        asked = escalation.open_escalation(life.declaration, life.workspace)
        assert asked is not None
        assert asked.run_id == f"rollback/{number}"  # these promotions were no run's decision
        assert f"version {5 - number} was rolled back" in asked.reason
        escalation.answer(
            life.declaration, life.workspace, asked.id, run_id="x", answer="acknowledged",
            person="ann", comment="seen",
        )  # fmt: skip
    assert len(rows(life, EscalationRow)) == 3


Step = tuple[str, str | None, bool, bool]


@settings(max_examples=25, deadline=None)
@given(
    verified=st.sets(st.integers(1, 4)),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c", "d"]),
            st.none() | st.sampled_from(["1", "2", "3", "4", "5"]),
            st.booleans(),
            st.booleans(),
        ),
        max_size=6,
    ),
)
def test_whatever_is_asked_the_ledger_stays_sound(verified: set[int], steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(golive, "carry_out", lambda *_: golive.Carried())
        life = bare(Path(folder), 4)
        for position in verified:
            note(life.workspace, position, "verified")
        for run, version, machine, force in steps:
            person = None if machine else "ann"
            try:
                back(life, run, person=person, version=version, force=force)
            except RollbackError:
                continue
        promotions, barred = rows(life, PromotionRow), rows(life, QuarantineRow)
        stops = rows(life, EscalationRow)
    returned = promotions[4:]
    assert [row.position for row in promotions] == list(range(1, len(promotions) + 1))
    assert len({row.run_id for row in promotions}) == len(promotions)
    for before, row in zip(promotions[3:], returned, strict=False):
        assert row.replaced == before.version != row.version
        assert row.as_of >= before.as_of
    assert {row.version for row in barred} == {row.replaced for row in returned}
    assert len(stops) == sum(row.person is None for row in returned)
    away: set[str] = set()
    for row in returned:
        assert row.person is not None or row.version not in away
        away.add(row.replaced or "")
