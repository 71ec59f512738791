"""What people asked for is kept once per key; the newest of pause and resume holds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.errors import ConflictError, RefusalError
from evergreen.ledger import Ledger, acts

MODEL = "example"
fresh = count()
asked = st.lists(st.tuples(st.sampled_from(["pause", "resume"]), st.integers(0, 5)), max_size=12)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/ledger.db")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """One ledger for all examples of a law, each of which takes a model of its own."""
    return Ledger(f"sqlite:///{tmp_path_factory.mktemp('shared')}/ledger.db")


def pause(ledger: Ledger, key: str, person: str = "vera", model: str = MODEL) -> str:
    """The key of the pause that holds then."""
    with ledger.write() as session:
        return acts.pause(session, model, key=key, person=person, comment="new labels").key


def resume(ledger: Ledger, key: str, person: str = "ann", model: str = MODEL) -> str | None:
    with ledger.write() as session:
        held = acts.resume(session, model, key=key, person=person, comment="")
        return held and held.key


def keys(ledger: Ledger, model: str = MODEL) -> list[str]:
    """Of every act, the newest first."""
    with ledger.read() as session:
        return [row.key for row in acts.acts_of(session, model, limit=None)]


def paused_by(ledger: Ledger, model: str = MODEL) -> str | None:
    with ledger.read() as session:
        held = acts.pause_of(session, model)
        return held and held.person


@pytest.mark.parametrize("name", acts.ACTS)
def test_an_act_sent_twice_is_one(ledger: Ledger, name: Any) -> None:
    for comment in ("why", "sent again"):
        with ledger.write() as session:
            row = acts.act(session, MODEL, "form 1", name, "vera", comment, {"run_id": "r"})
        assert (row.act, row.person, row.comment) == (name, "vera", "why")
        assert row.detail == {"run_id": "r"}
    assert keys(ledger) == ["form 1"]


@pytest.mark.parametrize(("name", "person"), [("resume", "vera"), ("pause", "ann")])
def test_a_key_is_of_one_act_and_one_person(ledger: Ledger, name: Any, person: str) -> None:
    pause(ledger, "form 1")
    said = "form 1 is already of vera's 'pause'"
    with pytest.raises(ConflictError, match=said), ledger.write() as session:
        acts.act(session, MODEL, "form 1", name, person, "why", {})
    assert keys(ledger) == ["form 1"]


def test_what_is_no_act_is_not_written(ledger: Ledger) -> None:
    sent: Any = "delete"
    said = "'delete' is no act; there are: retrain, roll_back"
    with pytest.raises(ValueError, match=said), ledger.write() as session:
        acts.act(session, MODEL, "form 1", sent, "vera", "", {})
    assert keys(ledger) == []


def test_the_newest_come_first_and_as_many_as_asked_for(ledger: Ledger) -> None:
    with ledger.write() as session:
        for number in range(60):
            acts.act(session, MODEL, f"form {number}", "retrain", "vera", "", {})
    with ledger.read() as session:
        assert [row.key for row in acts.acts_of(session, MODEL, 2)] == ["form 59", "form 58"]
        assert len(acts.acts_of(session, MODEL)) == 50
    assert len(keys(ledger)) == 60


def test_a_pause_holds_until_it_is_resumed(ledger: Ledger) -> None:
    assert paused_by(ledger) is None
    assert pause(ledger, "1") == "1"
    assert paused_by(ledger) == "vera"
    assert paused_by(ledger, "another model") is None
    assert resume(ledger, "2") == "2"
    assert paused_by(ledger) is None


def test_what_holds_already_is_not_recorded_again(ledger: Ledger) -> None:
    pause(ledger, "1")
    assert pause(ledger, "2", "ann") == "1"
    assert paused_by(ledger) == "vera"
    resume(ledger, "3")
    assert resume(ledger, "4") is None
    assert keys(ledger) == ["3", "1"]


def test_a_form_that_comes_late_changes_nothing(ledger: Ledger) -> None:
    """The browser sends the first pause again after somebody has resumed, and the resume too."""
    pause(ledger, "1")
    resume(ledger, "2")
    assert pause(ledger, "1") == "1"
    assert paused_by(ledger) is None
    pause(ledger, "3")
    assert resume(ledger, "2") == "2"
    assert paused_by(ledger) == "vera"


@pytest.mark.parametrize("comment", ["", "  \n"])
def test_a_pause_says_why(ledger: Ledger, comment: str) -> None:
    with pytest.raises(RefusalError, match="Say why"), ledger.write() as session:
        acts.pause(session, MODEL, key="1", person="vera", comment=comment)
    assert keys(ledger) == []


def test_of_many_who_pause_at_once_one_does(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        held = set(pool.map(lambda number: pause(ledger, str(number), f"p{number}"), range(8)))
    assert held == set(keys(ledger))
    assert len(held) == 1


@settings(max_examples=40, deadline=None)  # each writes some dozens of transactions
@given(asked=asked)
def test_any_row_of_wishes_gives_what_a_switch_gives(
    shared: Ledger, asked: list[tuple[str, int]]
) -> None:
    """A switch that hears each key once: other wishes turn it, or find it turned."""
    model, heard, on = f"model {next(fresh)}", set(), False
    for wish, number in asked:
        key = f"{wish} {number}"
        if wish == "pause":
            pause(shared, key, model=model)
        else:
            resume(shared, key, model=model)
        if key not in heard and on != (wish == "pause"):
            heard.add(key)
            on = wish == "pause"
        assert (paused_by(shared, model) is not None) == on
        assert set(keys(shared, model)) == heard
