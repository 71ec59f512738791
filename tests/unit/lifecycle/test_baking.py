"""A version that went live is watched: what sends it back, what verifies it, what is waited for."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.declaration import Declaration
from evergreen.errors import UnavailableError
from evergreen.foreground import Foreground
from evergreen.ledger import Ledger, records
from evergreen.ledger.tables import LabelRow, PromotionRow, QuarantineRow, ScoreRow
from evergreen.lifecycle import golive, registry, servers
from evergreen.lifecycle.asking import KEY
from evergreen.lifecycle.bakestate import GOOD, Bake, begin, record
from evergreen.lifecycle.baking import LOOKS, look_at_labels, look_at_requests
from evergreen.lifecycle.compaction import compact
from evergreen.lifecycle.contracts import BakeReport, Origin
from evergreen.lifecycle.fitted import FittedModel, load_fitted
from evergreen.lifecycle.servedlines import segment_name
from evergreen.lifecycle.servers import counters, smoke, states, wait_until_served
from evergreen.operators.baking import BakeOperator
from evergreen.serving.app import create_app
from evergreen.serving.server import Running
from evergreen.store import Store
from evergreen.workspace import Workspace
from tests.builders import declare
from tests.lifelike import SMALL, Life
from tests.replicas import Replica, nobody, running, said, text

NOW = datetime(2013, 2, 1, 12, tzinfo=UTC)
WEAK = {**SMALL["training"], "parameters": {"C": 1e-3}}
BAKE = {"watch": "10m", "every": "1m", "requests": 20, "rows": 100}


@dataclass(frozen=True)
class Lived:
    """Version 2 is live; version 1, which hardly learned, was before."""

    workspace: Workspace
    models: Mapping[str, FittedModel]

    def declare(self, **sections: Any) -> Declaration:
        return declare(self.workspace.home, **{**SMALL, "bake": BAKE, **sections})

    @property
    def live(self) -> PromotionRow:
        with self.workspace.ledger.read() as session:
            row = records.champion(session, "example")
        assert row is not None
        return row

    @property
    def events(self) -> dict[str, dict[str, Any]]:
        with self.workspace.ledger.read() as session:
            return records.events_of(session, self.live.id)

    def note(self, event: str, **detail: Any) -> None:
        with self.workspace.ledger.write() as session:
            records.add_event(session, self.live, event, detail)

    def verify(self, version: str) -> None:
        with self.workspace.ledger.write() as session:
            row = records.promotion_of_version(session, "example", version)
            assert row is not None
            records.add_event(session, row, "verified", {})

    def quarantine(self, version: str) -> None:
        with self.workspace.ledger.write() as session:
            row = records.promotion_of_version(session, "example", version)
            assert row is not None
            left = {"promotion_id": row.id, "run_id": "left", "reason": "it was bad"}
            session.add(QuarantineRow(model="example", version=version, **left))

    def promote(self, version: str) -> None:
        """Another version goes live, without all that a promotion is."""
        columns = PromotionRow.__table__.columns.keys()
        with self.workspace.ledger.write() as session:
            live = records.champion(session, "example")
            assert live is not None
            same = {c: getattr(live, c) for c in columns if c not in {"id", "recorded_at"}}
            new = {"version": version, "position": live.position + 1, "run_id": f"to {version}"}
            session.add(PromotionRow(**{**same, **new}))

    def answer(
        self,
        day: int,
        rows: int,
        *,
        truth: Callable[[pd.DataFrame], Any],
        answers: Callable[[pd.DataFrame], Any] | None = None,
        known_at: datetime | None = None,
    ) -> None:
        """A day that version 2 answered, and what became of its labels: drawn with chance
        ``truth``."""
        rng = np.random.default_rng(day)
        start = datetime(2013, 1, 1, tzinfo=UTC) + timedelta(days=day - 1)
        key = f"{start:%Y-%m-%d}"
        frame = pd.DataFrame(
            {
                "row_id": range(rows),
                "event_timestamp": pd.date_range(start, periods=rows, freq="10s").as_unit("us"),
                "x": rng.normal(size=rows),
                "kind": rng.choice(["a", "b"], rows),
            }
        )
        given = answers(frame) if answers else self.models["2"].predict(frame)
        log = frame.assign(prediction=given, model_version="2")
        store, known = self.workspace.store, known_at or start + timedelta(days=1)
        labels = pd.DataFrame(
            {
                "row_id": frame["row_id"],
                "label": rng.binomial(1, truth(frame)).astype(float),
                "label_timestamp": pd.Timestamp(known).as_unit("us"),
            }
        )
        shared = {"model": "example", "partition": key, "revision": 1, "version": "2", "rows": rows}
        score = ScoreRow(
            **shared, run_id=key, digest=key, metrics={},
            uri=store.put_table(f"predictions/{self.workspace.ledger.url.database}{key}", log),
        )  # fmt: skip
        label = LabelRow(
            **shared, as_of=known, sequence=day, matured=rows, pending=0,
            uri=store.put_table(f"labels/{self.workspace.ledger.url.database}{key}", labels),
        )  # fmt: skip
        with self.workspace.ledger.write() as session:
            session.add_all([score, label])


def went_live(life: Life, day: int) -> FittedModel:
    """Train, evaluate and register what the days until ``day`` teach, and write its promotion: a
    whole run takes too long to be made twice."""
    declared, workspace = life.declaration, life.workspace
    as_of = datetime(2013, 1, day + 1, tzinfo=UTC)
    run = Foreground(declared, workspace, as_of)
    trained, store = run.trained, workspace.store
    version = registry.register_version(
        workspace, declared, trained.mlflow_run, trained.model_uri, {}
    )
    origin = Origin(
        version=version,
        trained=trained.save(store),
        features=run.features.save(store),
        evaluation=run.evaluation.save(store),
    )
    snapshot = run.snapshot.save(store)
    row = PromotionRow(
        model="example", position=int(version), run_id=f"run {version}", version=version,
        replaced=str(int(version) - 1), kind="promote", reason="", as_of=as_of,
        mlflow_run=trained.mlflow_run, model_uri=trained.model_uri, snapshot_uri=snapshot.uri,
        snapshot_digest=snapshot.digest, trained_through=trained.trained_through,
        origin=origin.to_dict(),
    )  # fmt: skip
    with workspace.ledger.write() as session:
        session.add(row)
    return load_fitted(workspace, declared, trained.model_uri)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    folder = tmp_path_factory.mktemp("baking")
    life = Life.begin(folder, training=WEAK)
    life.land(1)
    life.land(2)
    weak = went_live(life, 2)
    better = Life(declare(folder, **SMALL), life.workspace)
    better.land(3, rows=280)
    return Lived(life.workspace, {"1": weak, "2": went_live(better, 3)})


def own_ledger(once: Lived, folder: Path) -> Workspace:
    """The same places with a copy of the ledger."""
    there, here = (sqlite3.connect(f / "ledger.db") for f in (once.workspace.home, folder))
    with closing(there), closing(here):
        there.backup(here)
    return replace(once.workspace, ledger=Ledger(f"sqlite:///{folder}/ledger.db"))


@pytest.fixture
def lived(once: Lived, tmp_path: Path) -> Lived:
    return replace(once, workspace=own_ledger(once, tmp_path))


def well(rows: pd.DataFrame) -> Any:
    """What the life's labels follow."""
    return 1 / (1 + np.exp(-2.0 * rows["x"]))


def turned(rows: pd.DataFrame) -> Any:
    return 1 - well(rows)


def level(rows: pd.DataFrame) -> Any:
    return np.full(len(rows), 0.5)


# labels


def test_nothing_bakes(tmp_path: Path, lived: Lived) -> None:
    empty = Workspace(
        tmp_path, Ledger(f"sqlite:///{tmp_path}/no.db"), lived.workspace.store, "sqlite://"
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


# requests


@dataclass
class Serving:
    """A replica that answers with a model, and what it counted as a test wants it."""

    replica: Replica
    model: FittedModel
    version: str = "2"
    counts: dict[str, float] = field(default_factory=lambda: {"200": 0.0, "500": 0.0})
    slow: float = 0.0
    former: float = 0.0
    shift: float = 0.0

    def start(self) -> Serving:
        self.replica.answers["/models/example/invocations"] = self.invoke
        self.say()
        return self

    def say(self, **rest: Any) -> None:
        self.replica.answers["/version"] = text(said(self.version, **rest))
        self.replica.answers["/metrics"] = text(self.metrics().encode())

    def count(self, well: float = 0.0, failed: float = 0.0, slow: float = 0.0) -> None:
        self.counts["200"] += well
        self.counts["500"] += failed
        self.slow += slow
        self.say()

    def metrics(self) -> str:
        labels = f'model="example",version="{self.version}",role="champion"'
        before = 'model="example",version="1",role="champion"'
        every = sum(self.counts.values())
        return "".join(
            [
                "# TYPE evergreen_requests_total counter\n",
                *(
                    f'evergreen_requests_total{{{labels},code="{code}"}} {count}\n'
                    for code, count in self.counts.items()
                ),
                "# TYPE evergreen_request_seconds histogram\n",
                f'evergreen_request_seconds_bucket{{{labels},le="0.01"}} {every - self.slow}\n',
                f'evergreen_request_seconds_bucket{{{labels},le="0.5"}} {every}\n',
                f'evergreen_request_seconds_bucket{{{labels},le="+Inf"}} {every}\n',
                f"evergreen_request_seconds_count{{{labels}}} {every}\n",
                f"evergreen_request_seconds_sum{{{labels}}} 1.0\n",
                f'evergreen_request_seconds_bucket{{{before},le="0.01"}} 0\n',
                f'evergreen_request_seconds_bucket{{{before},le="0.5"}} {self.former}\n',
                f'evergreen_request_seconds_bucket{{{before},le="+Inf"}} {self.former}\n',
            ]
        )

    def invoke(self, request: Any) -> None:
        asked = json.loads(self.replica.asked[-1][2])["dataframe_split"]
        rows = pd.DataFrame(asked["data"], columns=asked["columns"])
        chance = self.model.predict(rows) + self.shift
        body = json.dumps({"predictions": np.column_stack([1 - chance, chance]).tolist()}).encode()
        request.send_response(200)
        request.send_header("X-Evergreen-Version", self.version)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture
def serving(lived: Lived) -> Iterator[Serving]:
    with running() as replica:
        yield Serving(replica, lived.models["2"]).start()


def with_replicas(lived: Lived, *addresses: str, **bake: Any) -> Declaration:
    return lived.declare(
        serving={"replicas": list(addresses)},
        bake={**BAKE, **bake},
        gate={**SMALL["gate"], "latency_p95_ms": 50},
    )


def look(lived: Lived, serving: Serving, minutes: float, *more: str, **bake: Any) -> BakeReport:
    declared = with_replicas(lived, serving.replica.address, *more, **bake)
    now = NOW + timedelta(minutes=minutes)
    return look_at_requests(declared, lived.workspace, now=now)


def test_a_version_is_watched_until_its_time_has_passed(lived: Lived, serving: Serving) -> None:
    serving.count(failed=1000)  # of a time before it was watched
    first = look(lived, serving, 0)
    assert (first.outcome, first.over) == ("baking", False)
    assert first.reason == "smoke requests are well; watched for 10m"
    assert [rule.observed.split(" in ")[0] for rule in first.rules] == ["5 rows alike"]
    serving.count(30)
    second = look(lived, serving, 5)
    assert (second.outcome, second.over) == ("baking", False)
    assert second.reason == "5m of 10m, 30 requests (20 needed)"
    assert "next: another look" in list(second.describe())
    serving.count(30)
    third = look(lived, serving, 10)
    assert (third.outcome, third.over) == ("baking", True)
    assert third.reason.endswith(
        "60 requests (20 needed); by requests it is well; labels decide next"
    )
    assert [rule.name for rule in third.rules] == ["errors", "latency p95", "distribution"]
    assert "not judged: no logged answers" in third.rules[2].observed
    again = look(lived, serving, 11)
    assert (again.outcome, "labels decide next" in again.reason) == ("nothing", True)
    assert sum("invocations" in path for path, _, _ in serving.replica.asked) == 1
    lived.answer(4, 150, truth=well)
    declared = with_replicas(lived, serving.replica.address)
    assert look_at_labels(declared, lived.workspace, as_of=NOW).outcome == "verified"
    assert look(lived, serving, 12).outcome == "nothing"


def test_the_part_that_comes_last_verifies(lived: Lived, serving: Serving) -> None:
    lived.answer(4, 150, truth=well)
    declared = with_replicas(lived, serving.replica.address)
    assert look_at_labels(declared, lived.workspace, as_of=NOW).outcome == "baking"
    look(lived, serving, 0)
    serving.count(30)
    later = NOW + timedelta(minutes=10)
    found = look_at_requests(declared, lived.workspace, now=later, as_of=NOW)
    assert (found.outcome, found.over) == ("verified", True)
    # the same run, whose task was killed, is told the same
    much = later + timedelta(minutes=9)
    assert look_at_requests(declared, lived.workspace, now=much, as_of=NOW) == found
    assert look(lived, serving, 30).outcome == "nothing"


def test_another_answer_than_here_is_sent_back_at_once(lived: Lived, serving: Serving) -> None:
    serving.shift = 1e-4
    found = look(lived, serving, 0)
    assert found.outcome == "roll_back"
    assert "it answers otherwise than here, by up to 0.0001" in found.reason
    serving.shift = 0.0
    assert look(lived, serving, 1) == found
    assert "watching" not in lived.events


def test_a_refusal_is_sent_back(lived: Lived, serving: Serving) -> None:
    look(lived, serving, 0)
    serving.version = "1"
    serving.say(wanted="2", refused={"2": "its files have another digest"})
    found = look(lived, serving, 1)
    assert found.outcome == "roll_back"
    assert "refused: its files have another digest" in found.reason
    serving.say(wanted="2")
    assert look(lived, serving, 2) == found


def test_errors_that_are_sure_end_the_watch_early(lived: Lived, serving: Serving) -> None:
    look(lived, serving, 0)
    serving.count(19, failed=1)
    early = look(lived, serving, 1)
    assert early.outcome == "baking"  # one in twenty: 5 %, and not sure at all
    assert early.rules[0].observed == "1 of 20 requests (5.00%)"
    serving.count(failed=9)
    found = look(lived, serving, 2)
    assert found.outcome == "roll_back"
    assert found.reason.startswith("errors: 10 of 29 requests (34.48%), allowed not surely above")


def test_at_the_end_the_plain_share_counts(lived: Lived, serving: Serving) -> None:
    look(lived, serving, 0)
    serving.count(118, failed=2)
    found = look(lived, serving, 10)
    assert found.outcome == "roll_back"
    assert "allowed at most 1.00%" in found.reason


def test_a_lone_failure_in_a_quiet_hour_is_no_proof(lived: Lived, serving: Serving) -> None:
    """One of fewer than a hundred is always more than 1 %."""
    look(lived, serving, 0)
    serving.count(2, failed=1)
    found = look(lived, serving, 30)
    assert (found.outcome, found.over) == ("baking", True)
    assert found.rules[0].observed == "1 of 3 requests (33.33%)"
    assert "watched" not in lived.events
    serving.count(97)
    assert look(lived, serving, 31).reason.endswith("labels decide next")


def test_a_disproved_version_that_nothing_replaces_is_said_once(
    lived: Lived, serving: Serving
) -> None:
    """A rollback that fails each hour tells nobody anything new."""
    declared = with_replicas(lived, serving.replica.address)

    def at(hour: int) -> BakeReport:
        moment = NOW + timedelta(hours=hour)
        return look_at_requests(declared, lived.workspace, now=moment, as_of=moment)

    serving.shift = 0.1
    found = at(0)
    assert found.outcome == "roll_back"
    assert at(0) == found  # the run whose task was killed
    later = at(1)
    assert (later.outcome, later.over) == ("nothing", True)
    assert later.reason.startswith("version 2 was disproved by requests and is still live: smoke")
    assert "a person must name one with --version" in later.reason
    lived.verify("1")
    assert at(2) == found
    lived.quarantine("1")
    assert at(3).outcome == "nothing"


def test_slow_answers_are_sent_back(lived: Lived, serving: Serving) -> None:
    look(lived, serving, 0)
    serving.count(100, slow=8)
    assert look(lived, serving, 1).outcome == "baking"
    found = look(lived, serving, 10)
    assert found.outcome == "roll_back"
    # 3 of the 8 in the last bucket are the rest of 95: 0.01 + 0.49 * 3 / 8
    assert found.reason.startswith("latency p95: 193.8 ms of 100 requests, allowed at most 50.0 ms")


@pytest.mark.parametrize(
    ("former", "bake", "well"),
    [(20, {}, True), (19, {}, False), (20, {"latency_p95_ms": 50}, False)],
)
def test_as_slow_as_the_former_is_not_slow(
    lived: Lived, serving: Serving, former: int, bake: dict[str, Any], well: bool
) -> None:
    """Where only the gate's bound on the model alone is declared."""
    serving.former = former
    look(lived, serving, 0, **bake)
    serving.count(100, slow=8)
    found = look(lived, serving, 10, **bake)
    assert found.outcome == ("baking" if well else "roll_back")
    theirs = ", or 1.5 times the former champion's p95 here (475.5 ms)" if well else ""
    assert found.rules[1].bound == f"at most 50.0 ms{theirs}"


def test_a_replica_that_cant_be_reached_is_waited_for(lived: Lived, serving: Serving) -> None:
    away = nobody()
    first = look(lived, serving, 0, away)
    assert (first.outcome, first.over) == ("baking", False)
    assert f"; not yet: {away} can't be reached" in first.reason
    assert lived.events["watching"]["unanswered"] == [away]
    serving.count(100)
    found = look(lived, serving, 10, away)
    assert (found.outcome, found.over) == ("baking", False)
    assert f"{away} can't be reached" in found.reason
    with pytest.raises(UnavailableError, match="can't be looked at for 30m"):
        look(lived, serving, 30, away)
    assert look(lived, serving, 31).outcome == "baking"
    assert "watched" in lived.events


def test_what_keeps_going_live_from_being_finished_keeps_no_look(
    lived: Lived, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task looks first, and fails afterwards when nothing else comes of it."""

    def finish(*_: Any) -> None:
        raise UnavailableError("a replica doesn't report the version")

    monkeypatch.setattr(golive, "finish", finish)
    declared = with_replicas(lived, serving.replica.address)
    context: Any = {"dag_run": SimpleNamespace(run_after=NOW)}

    def bake(part: Any) -> BakeReport:
        operator = BakeOperator(task_id="bake", model=declared, part=part)
        report: BakeReport = operator.run_stage(lived.workspace, context)
        return report

    assert (bake("requests").outcome, "watching" in lived.events) == ("baking", True)
    lived.answer(4, 150, truth=well, known_at=lived.live.as_of)
    with pytest.raises(UnavailableError, match="doesn't report the version"):
        bake("labels")
    assert "proven" in lived.events
    serving.count(5, failed=25)
    assert bake("requests").outcome == "roll_back"


def test_nobody_to_look_at_begins_no_watch(lived: Lived) -> None:
    away = nobody()
    with pytest.raises(UnavailableError, match=f"can't be looked at: {away} can't be reached"):
        look_at_requests(with_replicas(lived, away), lived.workspace, now=NOW)
    assert "watching" not in lived.events


def test_a_dead_replica_keeps_no_bad_version_live(lived: Lived, serving: Serving) -> None:
    away = nobody()
    look(lived, serving, 0, away)
    serving.count(5, failed=25)
    found = look(lived, serving, 1, away)
    assert found.outcome == "roll_back"
    assert found.reason.startswith("errors: 25 of 30 requests")


def test_a_replica_that_comes_later_is_smoked_then(lived: Lived, serving: Serving) -> None:
    with running() as late:
        other = Serving(late, lived.models["2"], version="1").start()
        assert "serves 1" in look(lived, serving, 0, late.address).reason
        assert not any("invocations" in path for path, _, _ in late.asked)
        other.version, other.shift = "2", 1e-4
        other.say()
        found = look(lived, serving, 1, late.address)
    assert found.outcome == "roll_back"
    assert f"smoke requests at {late.address}: it answers otherwise" in found.reason
    assert sum("invocations" in path for path, _, _ in serving.replica.asked) == 1


@pytest.mark.parametrize("hangs", [True, False], ids=["hangs", "504"])
def test_a_version_that_takes_too_long_to_answer_is_sent_back(
    lived: Lived, serving: Serving, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    """It is asked again at each look, and must have answered when the watch is over."""
    monkeypatch.setattr(servers, "smoke", partial(smoke, timeout=0.3 if hangs else 10.0))
    invoke = serving.invoke
    slow = text({"error": {"code": "too_slow"}}, 504)
    serving.replica.answers["/models/example/invocations"] = (
        (lambda _: serving.replica.over.wait(10)) if hangs else slow
    )
    first = look(lived, serving, 0)
    assert (first.outcome, first.over) == ("baking", False)
    told = "didn't answer /models/example/invocations within 0.3 s" if hangs else "answers 504: "
    assert f"; not yet: {serving.replica.address} {told}" in first.reason
    early = look(lived, serving, 5)
    assert early.outcome == "baking"
    assert told in early.reason
    found = look(lived, serving, 10)
    assert found.outcome == "roll_back"
    assert f"smoke requests at {serving.replica.address}: {told}" in found.reason
    assert "asked again and again for 10m" in found.reason
    serving.replica.answers["/models/example/invocations"] = invoke


def test_a_first_answer_that_was_late_is_forgiven(
    lived: Lived, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke = serving.replica.answers["/models/example/invocations"]
    serving.replica.answers["/models/example/invocations"] = text({}, 504)
    look(lived, serving, 0)
    serving.replica.answers["/models/example/invocations"] = invoke
    serving.count(30)
    found = look(lived, serving, 10)
    assert [rule.name for rule in found.rules][2].startswith("smoke requests at http")
    assert "watched" in lived.events, found.reason


def test_hardly_any_requests_leave_it_unverified(lived: Lived, serving: Serving) -> None:
    look(lived, serving, 0)
    serving.count(12)
    waiting = look(lived, serving, 10)
    assert (waiting.outcome, waiting.over) == ("baking", False)
    found = look(lived, serving, 30)
    assert (found.outcome, found.over) == ("baking", True)
    assert "12 requests (20 needed); too few to judge by: it stays unverified" in found.reason
    assert "watched" not in lived.events
    serving.count(12)
    assert look(lived, serving, 300).reason.endswith("labels decide next")


def test_a_replica_that_was_started_anew_is_counted_from_0(lived: Lived, serving: Serving) -> None:
    serving.count(500)
    look(lived, serving, 0)
    serving.counts = {"200": 25.0, "500": 0.0}
    serving.say()
    assert "25 requests" in look(lived, serving, 10).reason


def test_another_version_meanwhile_ends_it(lived: Lived, serving: Serving) -> None:
    look(lived, serving, 0)
    serving.count(30)
    lived.promote("1")
    serving.version = "1"
    serving.say()
    serving.model = lived.models["1"]
    # this promotion of version 1 is another one, and is watched from its start
    assert "smoke requests are well" not in look(lived, serving, 10).reason


def logged(lived: Lived, rows: int, *, shift: float = 0.0, request: str = "r") -> None:
    """Requests that version 2 answered five minutes after its watch began, in the log."""
    rng = np.random.default_rng(rows)
    frame = pd.DataFrame({"x": rng.normal(size=rows), "kind": rng.choice(["a", "b"], rows)})
    answers = np.clip(lived.models["2"].predict(frame) + shift, 0, 1)
    moment = (NOW + timedelta(minutes=5)).isoformat(timespec="microseconds")
    lines = [
        {
            "request_id": f"{request}{place}", "request_row": 0, "served_at": moment,
            "replica": "one", "route": "invocations", "role": "champion", "model_version": "2",
            "event_timestamp": moment, "entities": {"origin": None}, "online": [], "slices": {},
            "features": {"x": float(x), "kind": kind}, "prediction": float(answer),
            "fallback": None, "feature_age": None,
        }
        for place, (x, kind, answer) in enumerate(zip(frame["x"], frame["kind"], answers, strict=True))
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    segment = f"20130201T120500Z-one-{request}{rows}"
    lived.workspace.store.write(segment_name("example", segment), lambda p: p.write_text(text))
    assert compact(lived.declare(), lived.workspace).rows == rows


@pytest.mark.parametrize(("shift", "outcome"), [(0.0, "baking"), (0.5, "roll_back")])
def test_logged_answers_are_held_beside_the_formers(
    lived: Lived, serving: Serving, tmp_path: Path, shift: float, outcome: str
) -> None:
    own = replace(lived.workspace, store=Store(f"file://{tmp_path}/store"))
    source = Path(f"{lived.workspace.store.root}/".removeprefix("file://"))
    shutil.copytree(source, tmp_path / "store")
    lived = replace(lived, workspace=own)
    look(lived, serving, 0)
    serving.count(30)
    logged(lived, 400, shift=shift)
    logged(lived, 50, shift=0.9, request="evergreen-smoke-2-")
    found = look(lived, serving, 10)
    assert found.outcome == outcome
    rule = {rule.name: rule for rule in found.rules}["distribution"]
    assert "from the former champion on 400 requests" in rule.observed
    assert rule.passed == (outcome == "baking")


def test_a_real_replica_is_watched(lived: Lived, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked by its API key, on loopback."""
    monkeypatch.setenv(KEY, "secret")
    registry.set_champion(lived.workspace, lived.declare(), "2")
    with real_replica(lived) as address:
        declared = with_replicas(lived, address, latency_p95_ms=10_000)  # however busy we are
        assert wait_until_served(declared, "2").startswith("1 replica serves version 2")
        first = look_at_requests(declared, lived.workspace, now=NOW)
        assert first.reason == "smoke requests are well; watched for 10m", first
        rows = pd.DataFrame({"x": [0.1, None], "kind": ["a", "b"]})
        for _ in range(25):
            assert {s.status for s in smoke(declared, rows, "2")} == {200}
        assert {s.status for s in smoke(declared, rows.drop(columns="x"), "2")} == {400}
        found = look_at_requests(declared, lived.workspace, now=NOW + timedelta(minutes=10))
        assert counters(declared, "2").refused == 0  # the version had nothing to do with it
        monkeypatch.delenv(KEY)
        (state,) = states(declared)
    assert found.reason.startswith("10m of 10m, 25 requests (20 needed); by requests it is well")
    assert found.rules[0].observed == "0 of 25 requests (0.00%)"
    assert found.rules[1].observed.endswith(" ms of 25 requests")
    assert found.rows == 50
    assert (state.problem or "").startswith("answers 401")


@contextmanager
def real_replica(lived: Lived) -> Iterator[str]:
    """What `evergreen serve` runs, in a thread of this process."""
    running = Running.start([lived.declare()], lived.workspace, name="one", every=0.2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = create_app(running.replica)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error"))
        thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            running.stop()


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
    workspace = own_ledger(once, tmp_path_factory.mktemp("law"))
    declared = with_replicas(once, "http://127.0.0.1:1")
    first: str | None = None
    for finding, by_labels in steps:
        part = "labels" if by_labels else "requests"
        bake = begin(declared, workspace, part, None)  # type: ignore[arg-type]  # a literal
        if isinstance(bake, Bake):
            event = {"good": GOOD[bake.part], "bad": "disproved", "unsure": None}[finding]
            outcome = "roll_back" if finding == "bad" else "baking"
            bake = record(bake, bake.report(outcome, finding), event)  # type: ignore[arg-type]  # a literal
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
