"""What both parts of a bake have found becomes one result, whoever writes first."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.ledger import records
from evergreen.lifecycle.bakestate import GOOD, Bake, Part, begin, record
from evergreen.lifecycle.contracts import BakeOutcome
from tests.baked import NOW, Lived, live_twice, with_replicas


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    return live_twice(tmp_path_factory.mktemp("baking"))


@pytest.fixture
def lived(once: Lived, tmp_path: Path) -> Lived:
    return once.apart(tmp_path)


def test_two_looks_at_once_end_in_one_result(lived: Lived) -> None:
    """The second one has begun before the first one wrote."""
    declared = lived.declare()
    one, two = (begin(declared, lived.workspace, "labels", NOW) for _ in range(2))
    assert isinstance(one, Bake)
    assert isinstance(two, Bake)
    bad = record(one, one.report("roll_back", "it is bad"), "disproved")
    assert record(two, two.report("baking", "it is well"), "proven") == bad
    assert set(lived.events) >= {"disproved"}
    assert not {"proven", "verified"} & set(lived.events)
    lived.promote("3")
    gone = record(one, one.report("baking", "it is well"), "proven")
    assert (gone.outcome, gone.reason) == ("nothing", "the live version is 3 by now")


@settings(max_examples=25, deadline=None)  # each has a ledger of its own
@given(
    steps=st.lists(st.tuples(st.sampled_from(["good", "bad", "unsure"]), st.booleans()), max_size=6)
)
def test_what_was_disproved_is_never_verified(
    once: Lived, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bool]]
) -> None:
    """However both parts' findings follow each other."""
    workspace = once.apart(tmp_path_factory.mktemp("law")).workspace
    declared = with_replicas(once, "http://127.0.0.1:1")
    first: str | None = None
    for finding, by_labels in steps:
        part: Part = "labels" if by_labels else "requests"
        bake = begin(declared, workspace, part, None)
        if isinstance(bake, Bake):
            event = {"good": GOOD[bake.part], "bad": "disproved", "unsure": None}[finding]
            outcome: BakeOutcome = "roll_back" if finding == "bad" else "baking"
            bake = record(bake, bake.report(outcome, finding), event)
        if bake.outcome in {"verified", "roll_back"}:
            first = first or bake.outcome
            assert bake.outcome == first
    with workspace.ledger.read() as session:
        live = records.champion(session, "example")
        assert live is not None
        events = set(records.events_of(session, live.id))
    assert not {"disproved", "verified"} <= events
    assert ("verified" in events) == (first == "verified")
    assert ("disproved" in events) == (first == "roll_back")
