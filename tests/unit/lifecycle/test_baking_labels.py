"""What labels say of a version that went live: sent back, verified, or waited for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from evergreen.ledger import Ledger, records
from evergreen.ledger.tables import ScoreRow
from evergreen.lifecycle.bakestate import Bake, begin
from evergreen.lifecycle.baking import LOOKS, look_at_labels, look_at_requests
from evergreen.lifecycle.contracts import BakeReport
from evergreen.workspace import Workspace
from tests.baked import BAKE, NOW, Lived, level, live_twice, turned, well, with_replicas


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    return live_twice(tmp_path_factory.mktemp("baking"))


@pytest.fixture
def lived(once: Lived, tmp_path: Path) -> Lived:
    return once.apart(tmp_path)


def test_nothing_bakes(tmp_path: Path, lived: Lived) -> None:
    empty = Workspace(
        tmp_path, Ledger(f"sqlite:///{tmp_path}/no.db"), lived.workspace.store, lambda: "sqlite://"
    )
    found = look_at_labels(lived.declare(), empty)
    assert (found.outcome, found.reason, found.over) == ("nothing", "no version is live", True)
    without = look_at_requests(lived.declare(), lived.workspace, now=NOW)
    assert (without.outcome, without.version) == ("nothing", "2")
    assert "no replica is declared" in without.reason


def test_too_few_matured_rows_are_waited_for(lived: Lived) -> None:
    lived.answer(4, 60, truth=well)
    lived.answer(5, 60, truth=well, known_at=datetime(2013, 3, 1, tzinfo=UTC))
    found = look_at_labels(lived.declare(), lived.workspace, as_of=datetime(2013, 1, 7, tzinfo=UTC))
    assert (found.outcome, found.over, found.rows) == ("baking", False, 60)
    assert found.reason == "60 of 100 matured rows"
    later = look_at_labels(lived.declare(), lived.workspace, as_of=datetime(2013, 3, 2, tzinfo=UTC))
    assert later.rows == 120


def test_a_better_version_is_verified_by_labels_alone_without_replicas(lived: Lived) -> None:
    lived.answer(4, 150, truth=well)
    found = look_at_labels(lived.declare(), lived.workspace, as_of=NOW)
    assert (found.outcome, found.former, found.rows, found.over) == ("verified", "1", 150, True)
    assert found.difference is not None
    assert found.interval is not None
    assert found.interval[0] < found.difference < found.interval[1]
    assert "log_loss improves on the former champion 1 by +" in found.reason
    assert {"proven", "verified"} <= set(lived.events)
    assert any(line == "bake: VERIFIED: " + found.reason for line in found.describe())
    # a killed attempt is told the same again, a later look that it is done
    assert look_at_labels(lived.declare(), lived.workspace, as_of=NOW) == found
    later = look_at_labels(lived.declare(), lived.workspace, as_of=NOW + timedelta(days=1))
    assert (later.outcome, "it is verified" in later.reason) == ("nothing", True)


def test_a_worse_version_is_sent_back_for_good(lived: Lived) -> None:
    lived.verify("1")
    lived.answer(4, 400, truth=turned)
    found = look_at_labels(lived.declare(), lived.workspace, as_of=NOW)
    assert found.outcome == "roll_back"
    assert found.interval is not None
    assert found.interval[1] < 0
    assert lived.events["disproved"]["part"] == "labels"
    lived.answer(5, 4000, truth=well)  # what comes later doesn't take it back
    for day in (0, 1, 2):
        again = look_at_labels(lived.declare(), lived.workspace, as_of=NOW + timedelta(days=day))
        assert again == found
    other = look_at_requests(with_replicas(lived, "http://127.0.0.1:1"), lived.workspace, now=NOW)
    assert other.outcome == "roll_back"
    assert other.reason.startswith("disproved by labels: log_loss improves")
    assert "verified" not in lived.events


def test_with_replicas_labels_alone_dont_verify(lived: Lived) -> None:
    lived.answer(4, 150, truth=well)
    declared = with_replicas(lived, "http://127.0.0.1:1")
    found = look_at_labels(declared, lived.workspace, as_of=NOW)
    assert (found.outcome, found.over) == ("baking", True)
    assert found.reason.endswith("by labels it is well; requests decide next")
    assert "next: nothing here" in list(found.describe())
    assert look_at_labels(declared, lived.workspace, as_of=NOW) == found
    later = look_at_labels(declared, lived.workspace, as_of=NOW + timedelta(days=1))
    assert later.outcome == "nothing"
    assert "verified" not in lived.events
    # servers that are no longer declared aren't waited for
    assert look_at_labels(lived.declare(), lived.workspace).outcome == "verified"


def test_each_number_of_rows_is_looked_at_once(lived: Lived) -> None:
    """Labels that both models know nothing of: unsure, until the last look takes that for well."""
    asked: list[BakeReport] = []
    declared = lived.declare(bake={**BAKE, "tolerance": 0.0})
    same = lived.models["1"].predict
    for day, rows in ((4, 120), (5, 60), (6, 60), (7, 170)):
        rng = np.random.default_rng(day)
        noise = rng.normal(scale=0.01, size=rows)
        lived.answer(day, rows, truth=level, answers=lambda f, n=noise: np.clip(same(f) + n, 0, 1))
        asked.append(look_at_labels(declared, lived.workspace, as_of=NOW))
        assert look_at_labels(declared, lived.workspace, as_of=NOW).rows == asked[-1].rows
    assert [found.rows for found in asked] == [120, 180, 240, 410]
    assert [found.outcome for found in asked] == ["baking"] * 3 + ["verified"]
    assert asked[0].reason.startswith("not sure yet: log_loss improves on")
    assert asked[1].reason.startswith("180 of 200 matured rows; not sure yet")
    assert asked[1].interval is None
    assert sorted(e for e in lived.events if e.startswith("looked:")) == [
        "looked:100",
        "looked:200",
    ]


def test_all_looks_together_err_as_rarely_as_one(lived: Lived) -> None:
    lived.answer(4, 150, truth=well)
    found = look_at_labels(lived.declare(), lived.workspace, as_of=NOW)
    assert f"({1 - 0.05 / len(LOOKS):.1%} interval" in found.reason


def test_rows_of_before_it_went_live_or_of_others_dont_count(lived: Lived) -> None:
    lived.answer(2, 150, truth=well)
    assert look_at_labels(lived.declare(), lived.workspace, as_of=NOW).rows == 0
    lived.answer(5, 150, truth=well)
    with lived.workspace.ledger.write() as session:  # it was scored again since, by another one
        rest = {"run_id": "r", "rows": 150, "uri": "", "digest": "", "metrics": {}}
        key = {"model": "example", "partition": "2013-01-05", "revision": 1}
        session.add(ScoreRow(**key, version="1", **rest))
    assert look_at_labels(lived.declare(), lived.workspace, as_of=NOW).rows == 0


def test_a_former_champion_that_cant_answer_is_said(lived: Lived) -> None:
    """It is compared with a naive model then."""
    with lived.workspace.ledger.write() as session:
        former = records.former(session, lived.live)
        assert former is not None
        session.merge(former).model_uri = "models:/m-gone"
    lived.answer(4, 150, truth=well)
    found = look_at_labels(lived.declare(), lived.workspace, as_of=NOW)
    assert found.outcome == "verified"
    assert "log_loss improves on a naive model (prior)" in found.reason
    assert "incomparable with the former champion 1: models:/m-gone can't be read" in found.reason


def test_a_feature_that_the_log_lacks_is_said(lived: Lived) -> None:
    lived.answer(4, 150, truth=well)
    with lived.workspace.ledger.read() as session:
        (score,) = [row for row in records.scores(session, "example") if row.version == "2"]
    log = lived.workspace.store.get_table(score.uri)
    lived.workspace.store.put_table(
        score.uri.removeprefix(f"{lived.workspace.store.root}/"), log.drop(columns="kind")
    )
    found = look_at_labels(lived.declare(), lived.workspace, as_of=NOW)
    assert "it needs kind, which the prediction log doesn't have" in found.reason


def test_without_a_former_champion_the_naive_model_is_beaten(lived: Lived) -> None:
    with lived.workspace.ledger.write() as session:
        former = records.former(session, lived.live)
        assert former is not None
        session.merge(former).model = "somebody else's"
    lived.answer(4, 150, truth=well)
    found = look_at_labels(lived.declare(), lived.workspace, as_of=NOW)
    assert (found.outcome, found.former) == ("verified", None)
    assert "improves on a naive model (prior)" in found.reason


def test_what_was_bad_is_nobodys_measure(lived: Lived) -> None:
    """After a return from version 3 to version 2, that is compared with version 1 again."""
    lived.promote("3")
    lived.quarantine("3")
    lived.promote("2")
    back = begin(lived.declare(), lived.workspace, "labels", NOW)
    assert isinstance(back, Bake)
    assert (back.live.position, back.former and back.former.version) == (4, "1")
    lived.quarantine("1")
    lived.answer(4, 150, truth=well)
    found = look_at_labels(lived.declare(), lived.workspace, as_of=NOW)
    assert (found.outcome, found.former) == ("verified", None)
    assert "improves on a naive model (prior)" in found.reason


def test_a_version_of_unknown_origin_is_left_alone(lived: Lived) -> None:
    with lived.workspace.ledger.write() as session:
        session.merge(lived.live).origin = {}
    found = look_at_labels(lived.declare(), lived.workspace, as_of=NOW)
    assert (found.outcome, "was promoted before" in found.reason) == ("nothing", True)


def test_rows_that_dont_define_the_metric_use_no_look_up(lived: Lived) -> None:
    lived.answer(4, 150, truth=lambda rows: np.ones(len(rows)))
    declared = lived.declare(evaluation={"primary": "roc_auc"})
    found = look_at_labels(declared, lived.workspace, as_of=NOW)
    assert found.reason == "150 matured rows don't define roc_auc"
    assert not any(event.startswith("looked") for event in lived.events)
    lived.answer(5, 150, truth=well)
    assert look_at_labels(declared, lived.workspace, as_of=NOW).rows == 300
