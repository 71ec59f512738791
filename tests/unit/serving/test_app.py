"""The HTTP side: statuses, headers, limits and the key; nobody is told more than they need."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from evergreen.lifecycle.fitted import load_fitted
from evergreen.serving import answering, security
from evergreen.serving.security import Door
from tests.served_models import set_alias
from tests.unit.serving.conftest import NOW, Open, Site

pytestmark = pytest.mark.anyio
ROWS: list[dict[str, Any]] = [
    {"temp": 90.0, "sky": "clear", "distance": 3.0},
    {"temp": None, "sky": "never seen", "distance": 40.0},
]
SMALL = {"serving": {"limits": {"rows": 5, "body_mb": 0.01}, "online": {"fallback": "defaults"}}}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def site(open_site: Open) -> Site:
    return open_site(**SMALL)


def probabilities(site: Site, rows: list[dict[str, Any]]) -> list[list[float]]:
    """What the registered model itself gives."""
    fitted = load_fitted(site.served.workspace, site.served.declaration, "models:/example/1")
    frame = pd.DataFrame(rows).astype({"temp": float, "sky": object, "distance": float})
    found: list[list[float]] = fitted.estimator.predict_proba(frame).tolist()
    return found


async def test_a_loaded_replica_says_so(site: Site) -> None:
    async with site.client() as client:
        assert (await client.get("/ping")).status_code == 200
        version = (await client.get("/version")).json()
    assert version["replica"] == "here"
    assert version["started_at"] == NOW.isoformat()
    state = version["models"]["example"]
    assert (state["version"], state["wanted"], state["candidate"]) == ("1", "1", None)
    assert (state["mode"], state["refused"], state["registry_problem"]) == ("shadow", {}, None)


@pytest.mark.parametrize("path", ["/invocations", "/models/example/invocations"])
async def test_features_are_answered_as_the_model_answers_them(site: Site, path: str) -> None:
    lists = [list(row.values()) for row in ROWS]
    answer = await site.post(path, {"instances": lists}, x_request_id="mine")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-evergreen-version"] == "1"
    assert answer.json() == {"predictions": probabilities(site, ROWS)}
    body = b"distance,other,temp,sky\r\n3,x,90,clear\r\n40,y,,never seen\r\n"
    assert (await site.post(path, body, content_type="text/csv")).json() == answer.json()


@pytest.mark.parametrize("path", ["/predict", "/models/example/predict"])
async def test_keys_are_answered_with_what_is_online(site: Site, path: str) -> None:
    rows = [{"origin": "JFK", "distance": 3}, {"origin": "nowhere", "distance": 3}]
    answer = (await site.post(path, {"rows": rows}, x_request_id="online")).json()
    assert (answer["model"], answer["version"]) == ("example", "1")
    assert answer["request_id"] == "online"
    found, missing = answer["predictions"]
    asked = [ROWS[0], {"temp": None, "sky": None, "distance": 3.0}]
    expected = [row[1] for row in probabilities(site, asked)]
    assert [found["prediction"], missing["prediction"]] == expected
    assert (found["fallback"], found["feature_age_seconds"]) == (None, 0.0)
    assert (missing["fallback"], missing["feature_age_seconds"]) == ("defaults", None)


@pytest.mark.parametrize("sent", ["", "x" * 129, "tab\there", "\x7f"])
async def test_a_request_id_that_is_no_id_is_made_anew(site: Site, sent: str) -> None:
    answer = await site.post("/invocations", {"inputs": ROWS}, x_request_id=sent)
    assert len(answer.headers["x-request-id"]) == 32


async def test_a_mistake_is_named_with_column_and_row(site: Site) -> None:
    rows = [ROWS[0], {**ROWS[0], "temp": "warm"}]
    answer = await site.post("/invocations", {"inputs": rows})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["code"], error["column"], error["row"]) == ("wrong_type", "temp", 1)
    assert answer.headers["x-request-id"]
    assert "x-evergreen-version" not in answer.headers


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("text/plain", {}),
        ("", {}),
        ("application/json; charset=latin-1", {}),
        ("application/json", {"content_encoding": "gzip"}),
    ],
)
async def test_another_content_type_is_refused(site: Site, kind: str, more: Any) -> None:
    answer = await site.post("/invocations", {"inputs": ROWS}, content_type=kind, **more)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "wrong_type")
    csv = await site.post("/predict", b"origin\nJFK\n", content_type="text/csv")
    assert csv.status_code == 415


async def test_too_large_a_body_is_refused_however_it_comes(site: Site) -> None:
    body = b'{"inputs": [' + b" " * 20_000 + b"]}"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    async with site.client() as client:
        for headers, content in (
            ({}, body),
            ({"transfer-encoding": "chunked"}, pieces()),
            ({"content-length": "10"}, pieces()),  # a lie
        ):
            answer = await client.post(
                "/invocations",
                content=content,
                headers={"content-type": "application/json", **headers},
            )
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    rows = await site.post("/invocations", {"inputs": [{"temp": 1}] * 6})
    assert (rows.status_code, rows.json()["error"]["code"]) == (413, "too_many_rows")


async def test_pieces_of_a_body_are_put_together(site: Site) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for part in (b'{"inputs": [{"temp": 90.0,', b'"sky": "clear", ', b'"distance": 3}]}'):
            yield part

    async with site.client() as client:
        answer = await client.post(
            "/invocations", content=pieces(), headers={"content-type": "application/json"}
        )
    assert answer.json() == {"predictions": probabilities(site, ROWS[:1])}


async def test_what_is_not_there_is_told_in_the_same_form(site: Site) -> None:
    async with site.client() as client:
        lost = await client.post("/models/other/predict", json={})
        wrong = await client.get("/invocations")
    assert (lost.status_code, lost.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "wrong_method")
    assert wrong.headers["allow"] == "POST"


async def test_a_full_house_turns_away(open_site: Open, site: Site) -> None:
    """One request under way fills this door: a second one is told to come back."""
    full = open_site(site.served, door=Door(requests=1))
    inside, release = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"inputs": '
        inside.set()  # who wants the rest has the first half
        await release.wait()
        yield b"[]}"

    async with full.client() as client:
        headers = {"content-type": "application/json"}
        first = asyncio.create_task(client.post("/predict", content=slow(), headers=headers))
        await asyncio.wait_for(inside.wait(), 10)
        second = await client.post("/predict", json={"rows": [{}]})
        release.set()
        assert (await first).status_code == 400
    assert (second.status_code, second.headers["retry-after"]) == (429, "1")
    assert (await full.post("/predict", {})).status_code == 400


async def test_bodies_fill_only_so_much_memory() -> None:
    door = Door(held=100)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 60, "more_body": True}

    with pytest.raises(Exception, match="are being read") as caught:
        await door.read(receive, {}, 1000)
    assert caught.value.status == 429
    with pytest.raises(Exception, match="are being read"):  # nothing is left of the first
        await door.read(receive, {}, 1000)


async def test_a_client_that_says_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(security, "BODY_SECONDS", 0.05)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(5)  # the test fails when this is waited for
        return {"type": "http.request", "body": b"{}"}

    with pytest.raises(Exception, match="didn't arrive within") as caught:
        await Door().read(receive, {}, 1000)
    assert caught.value.status == 408


async def test_a_slow_client_is_not_the_versions_latency(site: Site) -> None:
    registry = site.running.replica.metrics.registry
    labels = {"model": "example", "version": "1", "role": "champion"}

    def seconds() -> float:
        return registry.get_sample_value("evergreen_request_seconds_sum", labels) or 0.0

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"inputs": [{"temp": 90.0,'
        await asyncio.sleep(2.0)  # a slow client
        yield b'"sky": "clear", "distance": 3}]}'

    before = seconds()
    async with site.client() as client:
        headers = {"content-type": "application/json"}
        assert (await client.post("/predict", content=b"{", headers=headers)).status_code == 400
        answer = await client.post("/invocations", content=slow(), headers=headers)
    assert answer.status_code == 200
    assert before < seconds() < before + 1.0


async def test_a_model_that_hangs_is_told_and_charged(
    open_site: Open, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "PATIENCE", 0.1)
    monkeypatch.setattr(answering, "HANGING", 0.05)
    hung = open_site(site.served)
    version, release = hung.model.versions.champion, threading.Event()
    assert version is not None

    class Hanging:
        def predict_proba(self, frame: pd.DataFrame) -> Any:
            assert release.wait(10)
            return version.fitted.estimator.predict_proba(frame)

    follower = hung.model.versions._champion
    follower.version = replace(version, fitted=replace(version.fitted, estimator=Hanging()))
    answer = await hung.post("/invocations", {"inputs": ROWS})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "too_slow")
    assert answer.headers["x-evergreen-version"] == "1"
    async with hung.client() as client:
        ping = await client.get("/ping")
        assert (ping.status_code, ping.json()["error"]["code"]) == (503, "hanging")
        assert "example has been at one batch for" in ping.json()["error"]["reason"]
        page = (await client.get("/metrics")).text
        labels = 'model="example",role="champion",version="1"'
        assert f'evergreen_requests_total{{code="504",{labels}}} 1.0' in page
        release.set()
        for _ in range(500):
            if (ping := await client.get("/ping")).status_code == 200:
                break
            await asyncio.sleep(0.01)  # its thread tells nobody that it is free again
    assert ping.status_code == 200


async def test_a_candidate_that_was_given_up_counts_as_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = site.model.versions.champion
    assert version is not None
    slow = replace(version, number="2")
    monkeypatch.setattr(site.model.versions._candidate, "version", slow)
    async with site.client() as client:
        state = (await client.get("/version")).json()["models"]["example"]
        assert (state["candidate"], state["candidate_refused"]) == ("2", {})
        monkeypatch.setattr(site.model.answerer._batches._trial, "given_up", (slow, "too slow"))
        state = (await client.get("/version")).json()["models"]["example"]
        assert (state["candidate"], state["candidate_refused"]) == (None, {"2": "too slow"})
        page = (await client.get("/metrics")).text
    assert 'evergreen_model_refused{model="example",version="2"} 1.0' in page
    assert 'role="shadow",version="2"' not in page


async def test_only_the_key_opens(open_site: Open, site: Site) -> None:
    guarded = open_site(site.served, key="a secret")
    paths = [("GET", "/version"), ("GET", "/metrics"), ("GET", "/openapi.json"),
             ("POST", "/predict"), ("GET", "/nothing")]  # fmt: skip
    right = [{"authorization": "Bearer a secret"}, {"x-api-key": "a secret"}]
    wrong: list[dict[str, str]] = [
        {}, {"x-api-key": "a secre"}, {"x-api-key": ""}, {"authorization": "Basic a secret"},
    ]  # fmt: skip
    async with guarded.client() as client:
        assert (await client.get("/ping")).status_code == 200
        for method, path in paths:
            for headers in wrong:
                answer = await client.request(method, path, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert "secret" not in answer.text
            for headers in right:
                assert (await client.request(method, path, headers=headers)).status_code != 401


async def test_what_happened_is_counted(site: Site) -> None:
    await site.post("/predict", {"rows": [{"origin": "EWR", "distance": 1}]})
    async with site.client() as client:
        page = (await client.get("/metrics")).text
    labels = 'model="example",role="champion",version="1"'
    assert f'evergreen_requests_total{{code="200",{labels}}}' in page
    assert f"evergreen_request_seconds_count{{{labels}}}" in page
    assert f"evergreen_model_version_info{{{labels}}} 1.0" in page
    assert 'evergreen_requests_total{code="400",model="example",role="none",version="none"}' in page
    assert 'evergreen_registry_reachable{model="example"} 1.0' in page


async def test_without_a_version_nothing_is_answered(open_site: Open, site: Site) -> None:
    served = site.served
    set_alias(served, None)
    empty = open_site(served.__class__(served.declaration, _elsewhere(site)))
    async with empty.client() as client:
        ping: httpx.Response = await client.get("/ping")
    assert (ping.status_code, ping.json()["error"]["code"]) == (503, "no_version")
    answer = await empty.post("/invocations", {"inputs": ROWS})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert (await empty.post("/invocations", b"{")).status_code == 400
    set_alias(served, "1")
    answered = await site.post("/invocations", {"inputs": ROWS})
    assert answered.status_code == 200
    assert np.isfinite(answered.json()["predictions"]).all()


def _elsewhere(site: Site) -> Any:
    """The same registry, from a machine that holds nothing in its cache."""
    return replace(site.served.workspace, home=site.served.workspace.home / "elsewhere")
