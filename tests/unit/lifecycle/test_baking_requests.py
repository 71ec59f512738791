"""What replicas and their log say of a version that went live: sent back, well, or waited for."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import uvicorn

from evergreen.errors import UnavailableError
from evergreen.lifecycle import golive, registry, servers
from evergreen.lifecycle.asking import KEY
from evergreen.lifecycle.baking import look_at_labels, look_at_requests
from evergreen.lifecycle.compaction import compact
from evergreen.lifecycle.contracts import BakeReport
from evergreen.lifecycle.fitted import FittedModel
from evergreen.lifecycle.servedlines import segment_name
from evergreen.lifecycle.servers import counters, smoke, states, wait_until_served
from evergreen.operators.baking import BakeOperator
from evergreen.serving.app import create_app
from evergreen.serving.server import Running
from evergreen.store import Store
from tests.baked import NOW, Lived, live_twice, well, with_replicas
from tests.replicas import Replica, nobody, running, said, text


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    return live_twice(tmp_path_factory.mktemp("baking"))


@pytest.fixture
def lived(once: Lived, tmp_path: Path) -> Lived:
    return once.apart(tmp_path)


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
