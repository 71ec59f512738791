"""A promotion happens once, against the champion it was judged against, or not at all."""

import threading
from datetime import timedelta
from typing import Any

import pytest

from evergreen.errors import ConflictError, EvergreenError
from evergreen.ledger import records
from evergreen.lifecycle import promotion, registry
from evergreen.lifecycle.contracts import Champion
from tests.lifelike import Life


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Version 1 is live; two runs were judged against it, both better (a clearer pattern)."""
    life = Life.begin(
        tmp_path_factory.mktemp("life"),
        gate={
            "resamples": 400,
            "latency_p95_ms": 5000,
            "memory_mb": 8000,
            "promote_when": "non_inferior",
            "margin": 5.0,
        },
    )
    life.land(1)
    life.land(2)
    assert life.retrain("run 1").verdict == "bootstrap"
    return life


def champion(life: Life) -> Champion:
    with life.workspace.ledger.read() as session:
        live = records.champion(session, "example")
    assert live is not None
    return Champion.from_row(live)


def test_the_first_champion_is_complete(life: Life) -> None:
    with life.workspace.ledger.read() as session:
        live = records.champion(session, "example", champion(life).as_of)
        assert live is not None
        assert (live.position, live.kind, live.replaced) == (1, "bootstrap", None)
        assert list(records.events_of(session, live.id)) == [
            "aliased", "materialized", "profiled", "completed",
        ]  # fmt: skip
    assert registry.champion_version(life.workspace, life.declaration) == live.version


def test_a_race_has_one_winner_and_the_other_is_told(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.land(3)
    first = life.decide("run 2")
    one, run = life.judge(first)
    rival = first.model_copy(update={"run_id": "run 3"})
    other, rival_run = life.judge(rival)
    assert one.promotes
    assert other.promotes

    # killed after the ledger's row: the alias still points at the old version
    monkeypatch.setattr(
        promotion, "carry_out", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )  # a kill, as near as a thread can be killed
    with pytest.raises(KeyboardInterrupt):
        life.promote(first, one, run)
    monkeypatch.undo()
    assert registry.champion_version(life.workspace, life.declaration) == "1"

    with pytest.raises(
        ConflictError, match=r"judged against champion 1, but the champion is now version 2"
    ):
        life.promote(rival, other, rival_run)
    assert champion(life).position == 2

    healed = life.promote(first, one, run)
    again = life.promote(first, one, run)
    assert healed == again
    assert registry.champion_version(life.workspace, life.declaration) == healed.version == "2"


def test_of_two_promotions_at_once_one_wins(life: Life) -> None:
    """Both were judged against the same champion, and both are let through."""
    life.land(4)
    before = champion(life)
    decision = life.decide("run 8")
    verdict, _ = life.judge(decision)
    passed = verdict.model_copy(update={"promotes": True, "verdict": "promote"})
    assert passed.champion_position == before.position
    rivals = {
        name: life.judge(decision.model_copy(update={"run_id": name}))[1]
        for name in ("run 8", "run 9")
    }
    start, said = threading.Barrier(2), dict[str, Any]()

    def go(name: str) -> None:
        start.wait(30)
        try:
            mine = decision.model_copy(update={"run_id": name})
            said[name] = life.promote(mine, passed, rivals[name])
        except EvergreenError as error:
            said[name] = error

    threads = [threading.Thread(target=go, args=(name,)) for name in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    (lost,) = [each for each in said.values() if isinstance(each, Exception)]
    (won,) = [each for each in said.values() if not isinstance(each, Exception)]
    assert isinstance(lost, ConflictError)
    assert "Nothing was changed" in str(lost)
    after = champion(life)
    assert (after.position, after.version) == (before.position + 1, won.version)
    assert registry.champion_version(life.workspace, life.declaration) == won.version


def test_a_verdict_that_does_not_promote_is_refused(life: Life) -> None:
    life.land(5)
    decision = life.decide("run 4").model_copy(update={"run_id": "run 5"})
    verdict, run = life.judge(decision)
    before = champion(life)
    with pytest.raises(ConflictError, match="only a promoting verdict"):
        life.promote(
            decision, verdict.model_copy(update={"promotes": False, "verdict": "reject"}), run
        )
    assert champion(life) == before


def test_the_past_is_not_promoted_over_the_present(life: Life) -> None:
    before = champion(life)
    decision = life.decide("run 6").model_copy(update={"run_id": "run 7"})
    verdict, run = life.judge(decision)
    earlier = decision.model_copy(update={"as_of": before.as_of - timedelta(hours=1)})
    promoting = verdict.model_copy(update={"promotes": True, "champion_position": before.position})
    with pytest.raises(ConflictError, match="the past can't be promoted over the present"):
        life.promote(earlier, promoting, run)
    assert champion(life) == before
