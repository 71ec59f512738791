"""The client that asks replicas: of many kinds of answers, and of none."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.declaration import Declaration
from evergreen.errors import ServingError, UnavailableError
from evergreen.lifecycle.asking import KEY
from evergreen.lifecycle.replicacounts import Counters, parse, quantile
from evergreen.lifecycle.servers import (
    ReplicaState,
    counted,
    counters,
    smoke,
    states,
    wait_until_served,
)
from tests.builders import declare
from tests.replicas import Replica, nobody, running, said, text

METRICS = """\
# TYPE evergreen_requests_total counter
evergreen_requests_total{model="example",version="7",role="champion",code="200"} 90.0
evergreen_requests_total{model="example",version="7",role="champion",code="400"} 5.0
evergreen_requests_total{model="example",version="7",role="champion",code="500"} 7.0
evergreen_requests_total{model="example",version="7",role="champion",code="503"} 40.0
evergreen_requests_total{model="example",version="7",role="champion",code="504"} 3.0
evergreen_requests_total{model="example",version="7",role="shadow",code="200"} 1000.0
evergreen_requests_total{model="example",version="6",role="champion",code="200"} 1000.0
evergreen_requests_total{model="other",version="7",role="champion",code="200"} 1000.0
# TYPE evergreen_request_seconds histogram
evergreen_request_seconds_bucket{model="example",version="7",role="champion",le="0.01"} 50.0
evergreen_request_seconds_bucket{model="example",version="7",role="champion",le="0.1"} 90.0
evergreen_request_seconds_bucket{model="example",version="7",role="champion",le="+Inf"} 100.0
evergreen_request_seconds_count{model="example",version="7",role="champion"} 100.0
evergreen_request_seconds_sum{model="example",version="7",role="champion"} 3.0
# TYPE evergreen_answers_total counter
evergreen_answers_total{model="example",version="7",role="champion"} 180.0
"""


def of(folder: Path, *replicas: Replica | str, **rest: Any) -> Declaration:
    addresses = [each if isinstance(each, str) else each.address for each in replicas]
    return declare(folder, serving={"replicas": addresses, **rest})


def trickle(replica: Replica) -> Callable[[Any], None]:
    """Half an answer, and then a byte now and again, for ever."""

    def handle(request: Any) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        while not replica.over.wait(0.05):
            try:
                request.wfile.write(b" ")
                request.wfile.flush()
            except OSError:
                return

    return handle


def cut(request: Any) -> None:
    """Less than was announced, and the connection is closed."""
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b'{"models"')
    request.close_connection = True


# states


def test_every_replica_is_asked_for_itself(tmp_path: Path) -> None:
    refusing = said("6", wanted="7", refused={"7": "its files have another digest"})
    with running(version=text(said())) as a, running(version=text(refusing)) as b:
        found = states(of(tmp_path, a, b))
    assert [(s.address, s.version) for s in found] == [(a.address, "7"), (b.address, "6")]
    assert found[1].refuses("7") == "its files have another digest"
    assert found[0].refuses("7") is None
    assert found[1].told() == f"{b.address} serves 6, wants 7"


def test_a_proxy_of_the_environment_isnt_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", nobody())
    monkeypatch.setenv("ALL_PROXY", nobody())
    with running(version=text(said())) as a:
        assert states(of(tmp_path, a))[0].version == "7"


def test_the_key_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "secret")
    with running(version=text(said())) as a:
        states(of(tmp_path, a))
        assert a.asked[0][1]["authorization"] == "Bearer secret"
        a.answers["/version"] = text({}, 401)
        (found,) = states(of(tmp_path, a))
    assert found.problem == f"answers 401: {KEY} must hold the key it was started with"
    assert "secret" not in found.told()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (text(b"<html>"), "answers /version with what no evergreen replica says"),
        (text([1]), "answers /version with what no evergreen replica says: list where an object"),
        (text({}), "there is no object `models`"),
        (text({"models": {"example": 3}}), "answers /version with what no evergreen replica says"),
        (text({"models": {"other": {}}}), "doesn't serve example, but other"),
        (text(b"", 302, Location="http://127.0.0.1:1/"), "answers 302"),
        (text(b"b" * (9 << 20)), "answers /version with more than 8,388,608 B"),
        (cut, "can't be reached (RemoteProtocolError"),
    ],
)
def test_what_isnt_a_replicas_answer_is_told(tmp_path: Path, answer: Any, told: str) -> None:
    with running(version=answer) as a:
        (found,) = states(of(tmp_path, a))
    assert told in (found.problem or "")
    assert found.version is None
    assert found.told().startswith(a.address)


def test_one_that_hangs_or_trickles_costs_the_time_it_has(tmp_path: Path) -> None:
    with running() as slow, running() as silent, running(version=text(said())) as well:
        slow.answers["/version"] = trickle(slow)
        silent.answers["/version"] = lambda request: silent.over.wait(20) and None
        began = time.monotonic()
        found = states(of(tmp_path, slow, silent, well, nobody()), timeout=0.5)
        took = time.monotonic() - began
    assert took < 3
    assert [s.version for s in found] == [None, None, "7", None]
    assert found[0].problem == found[1].problem == "didn't answer /version within 0.5 s"
    assert (found[3].problem or "").startswith("can't be reached (ConnectError")


# waiting


def test_nothing_is_waited_for_without_replicas(tmp_path: Path) -> None:
    assert wait_until_served(declare(tmp_path), "7") == "no server is declared; nothing to wait for"


def test_it_waits_until_the_last_one_serves(tmp_path: Path) -> None:
    with running(version=text(said())) as a, running(version=text(said("6"))) as b:

        def sleep(seconds: float) -> None:
            assert 0 < seconds <= 1
            b.answers["/version"] = text(said())

        told = wait_until_served(of(tmp_path, a, b), "7", sleep=sleep)
        assert told.startswith("2 replicas serve version 7 after ")
        assert wait_until_served(of(tmp_path, a), "7").startswith("1 replica serves version 7")


def test_a_refusal_ends_the_wait(tmp_path: Path) -> None:
    refusing = said("6", wanted="7", refused={"7": "NaN on its examples"})
    with (
        running(version=text(said())) as a,
        running(version=text(refusing)) as b,
        pytest.raises(ServingError) as told,
    ):
        wait_until_served(of(tmp_path, a, b), "7")
    assert f"{b.address} refuses version 7: NaN on its examples" in str(told.value)


def test_what_was_refused_once_is_no_refusal_of_today(tmp_path: Path) -> None:
    """A rollback to a version whose alias has moved, before this replica has looked."""
    before = said("8", wanted="8", refused={"7": "the registry was away"})
    with running(version=text(before)) as a:

        def sleep(seconds: float) -> None:
            a.answers["/version"] = text(said("7", refused={"7": "the registry was away"}))

        assert "serves version 7" in wait_until_served(of(tmp_path, a), "7", sleep=sleep)


def test_when_time_is_over_each_late_one_is_named(tmp_path: Path) -> None:
    passed = 0.0

    def sleep(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    away = nobody()
    with running(version=text(said())) as a, running(version=text(said("6", wanted="7"))) as b:
        with pytest.raises(UnavailableError) as told:
            wait_until_served(
                of(tmp_path, a, b, away, within="2s"), "7", sleep=sleep, clock=lambda: passed
            )
        assert len(a.asked) <= 20
    assert "after 2 s (serving.within: 2 s)" in str(told.value)
    assert f"{b.address} serves 6, wants 7; {away} can't be reached" in str(told.value)
    assert a.address not in str(told.value)


# smoke


def test_smoke_requests_are_those_of_a_client(tmp_path: Path) -> None:
    answer = text({"predictions": [[0.9, 0.1], [0.2, 0.8]]}, X_Evergreen_Version="7")
    rows = pd.DataFrame({"x": [1.5, np.nan], "kind": ["a", None]})
    with running(**{"models/example/invocations": answer}) as a, running() as b:
        one, two = smoke(of(tmp_path, a, b), rows, "7")
        path, headers, body = a.asked[0]
    assert json.loads(body) == {
        "dataframe_split": {"columns": ["x", "kind"], "data": [[1.5, "a"], [None, None]]}
    }
    assert path == "/models/example/invocations"
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"].startswith("evergreen-smoke-7-")
    assert (one.status, one.version, one.problem) == (200, "7", None)
    assert one.answers == ([0.9, 0.1], [0.2, 0.8])
    assert 0 < one.seconds < 5
    assert (two.status, two.answers) == (404, ())
    assert (two.problem or "").startswith("answers 404")


@pytest.mark.parametrize("body", [{"answers": []}, [1], {"predictions": 3}, b"{"])
def test_a_half_answer_is_a_problem(tmp_path: Path, body: Any) -> None:
    with running(**{"models/example/invocations": text(body)}) as a:
        (found,) = smoke(of(tmp_path, a), pd.DataFrame({"x": [1.0]}), "7")
    assert (found.problem or "").startswith("answers 200 without a list of predictions")


# counters


def test_counters_are_the_versions_as_champion(tmp_path: Path) -> None:
    with running(metrics=text(METRICS.encode())) as a, running(metrics=text(b"")) as b:
        declaration = of(tmp_path, a, b, a.address.replace("127.0.0.1", "localhost"))
        found = counters(declaration, "7")
        each, problems = counted(declaration, "7")
    assert (found.answered, found.refused, found.failed, found.rows) == (180, 10, 20, 360)
    assert found.buckets == {0.01: 100, 0.1: 180, math.inf: 200}
    assert found.requests == 200
    assert each[b.address] == Counters()
    assert problems == {}


def test_counters_of_one_that_cant_be_asked(tmp_path: Path) -> None:
    away = nobody()
    with running(metrics=text(b"evergreen_x{ab 3")) as a:
        found, problems = counted(of(tmp_path, a, away), "7")
        assert found == {}
        assert "isn't Prometheus' text format" in problems[a.address]
        with pytest.raises(UnavailableError, match=f"{away} can't be reached"):
            counters(of(tmp_path, a, away), "7")


def test_counts_are_kept_as_plain_json() -> None:
    found = parse(METRICS, "example", "7")
    assert Counters.of(json.loads(json.dumps(found.to_dict()))) == found


COUNTS = st.lists(st.integers(0, 50), min_size=4, max_size=4)
ENDS = (0.01, 0.1, 1.0, math.inf)


def histogram(counts: list[int]) -> Counters:
    cumulative = dict(zip(ENDS, np.cumsum(counts).astype(float).tolist(), strict=True))
    return Counters(answered=float(sum(counts)), buckets=cumulative)


@given(COUNTS, COUNTS)
def test_what_was_counted_since_is_what_was_added(one: list[int], two: list[int]) -> None:
    before, new = histogram(one), histogram(two)
    assert (before + new).since(before) == new
    assert (before + new).since(Counters()) == before + new


@given(COUNTS, COUNTS)
def test_a_replica_that_started_anew_is_counted_from_0(one: list[int], two: list[int]) -> None:
    before, now = histogram(one), histogram(two)
    fell = any(now.buckets[end] < before.buckets[end] for end in ENDS)
    since = now.since(before)
    assert since == (now if fell else since)
    assert since.answered >= 0
    assert all(count >= 0 for count in since.buckets.values())


@given(COUNTS, st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_quantile_rises_and_lies_in_its_bucket(counts: list[int], p: float, q: float) -> None:
    buckets = histogram(counts).buckets
    low, high = (quantile(each, buckets) for each in sorted((p, q)))
    if not sum(counts):
        assert low is None
        return
    assert low is not None
    assert high is not None
    assert low <= high
    within = buckets[next(end for end in ENDS if low <= end)]
    assert within >= min(p, q) * sum(counts) - 1e-9


def test_a_quantile_is_as_prometheus_has_it() -> None:
    """Its documentation's rule by hand: rank 95 is 5/9 of the way from 0.1 to 1."""
    buckets = {0.1: 90.0, 1.0: 99.0, math.inf: 100.0}
    assert quantile(0.95, buckets) == pytest.approx(0.1 + 0.9 * 5 / 9)
    assert quantile(0.45, buckets) == pytest.approx(0.05)
    assert quantile(0.999, buckets) == math.inf
    assert quantile(0.5, {math.inf: 0.0}) is None
    assert Counters(buckets=buckets).slower(0.05) == 10
    assert Counters(buckets=buckets).slower(5.0) == 0


def test_a_state_in_words() -> None:
    assert ReplicaState("http://a").told() == "http://a serves no version"
    away = ReplicaState("http://a", "7", "7", registry_problem="registry away since 3 s")
    assert away.told() == "http://a serves 7 (registry away since 3 s)"
