"""Answered together, judged alone, and in the log before anybody hears of it."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from evergreen.declaration import Task
from evergreen.lifecycle.servers import SMOKE
from evergreen.serving import answering
from evergreen.serving.refusals import RequestError
from tests.unit.serving.desk import NAN, NOW, RAISES, Sit, answers

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_who_waits_together_is_answered_together(sit: Sit) -> None:
    desk = sit()
    desk.versions.champion, moody = desk.version("1", waits=True)
    first = asyncio.create_task(desk.ask(1.0))
    await asyncio.to_thread(moody.asked.wait, 10)
    rest = [asyncio.create_task(desk.ask(float(k), float(k + 1))) for k in range(20, 40)]
    await asyncio.sleep(0)  # let them ask
    moody.gate.set()
    assert answers(await first) == [0.01]
    for k, task in zip(range(20, 40), rest, strict=True):
        assert answers(await task) == [k / 100, (k + 1) / 100]
    assert moody.sizes == [1, 40]


async def test_a_batch_has_a_bound_but_a_large_request_is_answered(
    sit: Sit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "BATCH_ROWS", 3)
    desk = sit()
    desk.versions.champion, moody = desk.version("1", waits=True)
    tasks = [asyncio.create_task(desk.ask(1.0))]
    await asyncio.to_thread(moody.asked.wait, 10)
    tasks += [asyncio.create_task(desk.ask(*[2.0] * rows)) for rows in (2, 1, 1, 5, 1)]
    await asyncio.sleep(0)
    moody.gate.set()
    await asyncio.gather(*tasks)
    assert moody.sizes == [1, 3, 1, 5, 1]


async def test_a_bad_request_costs_its_neighbours_nothing(
    sit: Sit, caplog: pytest.LogCaptureFixture
) -> None:
    desk = sit()
    desk.versions.champion, moody = desk.version("7", waits=True)
    held = asyncio.create_task(desk.ask(1.0, request_id="held"))
    await asyncio.to_thread(moody.asked.wait, 10)
    asked = {
        "good": desk.ask(20.0, 21.0, request_id="good"),
        "raises": desk.ask(20.0, RAISES, request_id="raises"),
        "nan": desk.ask(20.0, NAN, request_id="nan"),
        "wrong": desk.answerer.answer(
            desk.invocations([{"temp": "x", "sky": None, "distance": 1}]), "wrong"
        ),
        "also good": desk.ask(30.0, request_id="also good"),
    }
    tasks = {name: asyncio.create_task(asking) for name, asking in asked.items()}
    await asyncio.sleep(0)
    moody.gate.set()
    found = {name: await task for name, task in tasks.items()}
    await held
    assert answers(found["good"]) == [0.2, 0.21]
    assert answers(found["also good"]) == [0.3]
    for name, row in (("raises", None), ("nan", 1)):
        error = found[name].error
        assert error is not None
        assert (error.status, error.code, error.row) == (500, "model_failed", row)
        assert "unlucky" not in error.reason
        assert (found[name].version, found[name].role) == ("7", "champion")
    assert any("unlucky" in record.getMessage() for record in caplog.records)
    assert not any("\n" in record.getMessage() for record in caplog.records), "a forged line"
    wrong = found["wrong"]
    assert wrong.error is not None
    assert (wrong.error.status, wrong.version, wrong.role) == (400, "none", "none")
    logged = [(line["request_id"], line["request_row"]) for line in desk.lines()]
    assert logged == [("held", 0), ("good", 0), ("good", 1), ("also good", 0)]
    assert desk.count("evergreen_answers_total", version="7", role="champion") == 4
    assert moody.sizes == [1, 7, 2, 2, 2, 1]  # once together; once each


async def test_nan_alone_needs_no_second_try(sit: Sit) -> None:
    desk = sit()
    desk.versions.champion, moody = desk.version("7", waits=True)
    held = asyncio.create_task(desk.ask(1.0))
    await asyncio.to_thread(moody.asked.wait, 10)
    tasks = [asyncio.create_task(desk.ask(temp)) for temp in (NAN, 20.0)]
    await asyncio.sleep(0)
    moody.gate.set()
    await held
    bad, good = [await task for task in tasks]
    assert bad.error is not None
    assert answers(good) == [0.2]
    assert moody.sizes == [1, 2]


async def test_what_is_answered_is_in_the_log_already(sit: Sit) -> None:
    desk = sit()
    desk.versions.champion, _ = desk.version("3")
    moment = NOW - timedelta(hours=1)
    rows = [
        {"temp": 25, "sky": None, "distance": 2, "origin": "JFK", "carrier": "AA", "other": 1,
         "event_timestamp": "2026-01-01T12:00:00+01:00"},
        {"temp": None, "sky": "cloudy", "distance": 3},
    ]  # fmt: skip
    outcome = await desk.answerer.answer(desk.invocations(rows[:1]), "one")
    assert outcome.error is None
    assert desk.lines() == [
        {
            "request_id": "one",
            "request_row": 0,
            "served_at": "2026-01-01T12:00:00.000000+00:00",
            "replica": "here",
            "route": "invocations",
            "role": "champion",
            "model_version": "3",
            "event_timestamp": moment.isoformat(timespec="microseconds"),
            "entities": {"origin": "JFK"},
            "features": {"temp": 25.0, "sky": None, "distance": 2.0},
            "online": [],
            "slices": {"carrier": "AA"},
            "prediction": 0.25,
            "fallback": None,
            "feature_age": None,
        }
    ]
    unknown = await desk.answerer.answer(desk.invocations(rows[1:]), "two")
    assert unknown.error is not None  # this model says NaN without a temperature
    assert len(desk.lines()) == 1


async def test_without_a_log_nothing_is_answered(sit: Sit) -> None:
    desk = sit()
    desk.versions.champion, _ = desk.version("1")
    shutil.rmtree(desk.spool.folder)
    outcome = await desk.ask(20.0)
    assert outcome.error is not None
    assert (outcome.error.status, outcome.error.code) == (503, "log_unavailable")
    assert outcome.role == "none"  # it isn't the version's fault
    assert desk.count("evergreen_log_failures_total") == 1
    desk.spool.folder.mkdir()
    assert answers(await desk.ask(20.0)) == [0.2]


async def test_a_full_queue_turns_away(sit: Sit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "WAITING_REQUESTS", 3)
    monkeypatch.setattr(answering, "WAITING_ROWS", 4)
    desk = sit()
    desk.versions.champion, moody = desk.version("1", waits=True)
    tasks = [asyncio.create_task(desk.ask(1.0))]
    await asyncio.to_thread(moody.asked.wait, 10)
    tasks.append(asyncio.create_task(desk.ask(2.0, 2.0, 2.0)))
    await asyncio.sleep(0)
    with pytest.raises(RequestError, match="wait; ask again") as caught:
        await desk.ask(3.0, 3.0)  # two rows more than may wait
    assert (caught.value.status, caught.value.retry_after) == (429, 1)
    tasks.append(asyncio.create_task(desk.ask(3.0)))
    await asyncio.sleep(0)
    moody.gate.set()
    assert [answers(await task)[0] for task in tasks] == [0.01, 0.02, 0.03]


async def test_nobody_waits_for_ever(sit: Sit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "HANGING", 0.02)
    desk = sit()
    desk.versions.champion, slow = desk.version("1", waits=True)
    assert desk.answerer.hanging is None
    first = asyncio.create_task(desk.ask(1.0))
    await asyncio.to_thread(slow.asked.wait, 10)
    monkeypatch.setattr(answering, "PATIENCE", 0.05)
    for outcome in [await desk.ask(1.0), await desk.ask(1.0, request_id=f"{SMOKE}-1")]:
        assert outcome.error is not None
        assert (outcome.error.status, outcome.error.code) == (504, "too_slow")
        assert outcome.error.reason == "no answer within 0.05 s"
        assert (outcome.version, outcome.role) == ("1", "champion"), "it is at work"
    assert desk.answerer.hanging
    assert desk.answerer.hanging > 0.02
    slow.gate.set()
    assert answers(await first) == [0.01]
    await desk.until(lambda: desk.answerer.hanging is None)


async def test_a_slow_log_is_no_versions_fault(sit: Sit, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, writing, written = sit(), threading.Event(), threading.Event()
    desk.versions.champion, moody = desk.version("1")

    def append(lines: Sequence[bytes]) -> None:
        writing.set()
        written.wait(10)

    monkeypatch.setattr(desk.spool, "append", append)
    first = asyncio.create_task(desk.ask(1.0))
    await asyncio.to_thread(writing.wait, 10)
    monkeypatch.setattr(answering, "PATIENCE", 0.05)
    outcome = await desk.ask(1.0)
    assert moody.sizes == [1], "the model has answered; the log hasn't"
    written.set()
    assert answers(await first) == [0.01]
    assert outcome.error is not None
    assert (outcome.error.status, outcome.version, outcome.role) == (504, "none", "none")


async def test_a_swap_in_between_drops_and_mixes_nothing(sit: Sit) -> None:
    desk = sit()
    desk.versions.champion, moody = desk.version("1", waits=True)
    first = asyncio.create_task(desk.ask(1.0))
    await asyncio.to_thread(moody.asked.wait, 10)
    rest = [asyncio.create_task(desk.ask(2.0)) for _ in range(5)]
    await asyncio.sleep(0)
    desk.versions.champion, _ = desk.version("2")
    moody.gate.set()
    assert (await first).version == "1"
    assert {(await task).version for task in rest} == {"2"}
    assert [line["model_version"] for line in desk.lines()] == ["1", *["2"] * 5]


async def test_the_end_comes_after_what_waits(sit: Sit) -> None:
    desk = sit()
    desk.versions.champion, moody = desk.version("1", waits=True)
    tasks = [asyncio.create_task(desk.ask(1.0)) for _ in range(3)]
    await asyncio.to_thread(moody.asked.wait, 10)
    stopping = asyncio.create_task(asyncio.to_thread(desk.answerer.stop))
    await asyncio.sleep(0.05)  # until the other thread has begun to stop it
    moody.gate.set()
    assert await stopping
    assert [answers(await task) for task in tasks] == [[0.01]] * 3
    with pytest.raises(RequestError, match="stops"):
        await desk.ask(1.0)


async def test_features_that_cannot_be_had_reject_their_request_only(sit: Sit) -> None:
    desk = sit(online={"fallback": "reject"})  # and there is no online store
    desk.versions.champion, _ = desk.version("5")
    asking = desk.answerer.answer(desk.predict([{"origin": "JFK", "distance": 1}]), "looks up")
    looked, given = await asyncio.gather(asking, desk.ask(20.0))
    assert looked.error is not None
    assert (looked.error.status, looked.error.code) == (503, "features_rejected")
    assert looked.error.row == 0
    assert "weather" in looked.error.reason
    assert (looked.version, looked.role) == ("none", "none"), "it is the store's doing"
    assert answers(given) == [0.2]


async def test_who_needs_no_lookup_does_not_wait_for_the_store(
    sit: Sit, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = sit(online={"fallback": "defaults", "defaults": {"temp": 40.0}})
    desk.versions.champion, _ = desk.version("5")
    asked, there, lookup = threading.Event(), threading.Event(), desk.online.lookup

    def slow(*given: Any) -> Any:
        asked.set()
        assert there.wait(10)
        return lookup(*given)

    monkeypatch.setattr(desk.online, "lookup", slow)
    row = {"origin": "JFK", "distance": 1}
    looking = asyncio.create_task(desk.answerer.answer(desk.predict([row]), "looks up"))
    await asyncio.to_thread(asked.wait, 10)
    began = time.perf_counter()
    for _ in range(5):
        given = await desk.ask(20.0)
        assert (answers(given), given.store_seconds) == ([0.2], 0.0)
    monkeypatch.setattr(answering, "PATIENCE", 0.05)
    late = await desk.answerer.answer(desk.predict([row]), "looks up too")
    assert late.error is not None
    assert (late.error.status, late.version, late.role) == (504, "none", "none")
    waited = time.perf_counter() - began
    there.set()
    looked = await looking
    assert (looked.error, looked.version) == (None, "5")
    assert waited <= looked.store_seconds, "what the store took is known, and none of the version's"


async def test_a_swap_during_a_lookup_mixes_nothing(
    sit: Sit, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = sit(online={"fallback": "defaults", "defaults": {"temp": 40.0}})
    desk.versions.champion, _ = desk.version("1")
    asked, there, lookup = threading.Event(), threading.Event(), desk.online.lookup

    def slow(*given: Any) -> Any:
        asked.set()
        assert there.wait(10)
        return lookup(*given)

    monkeypatch.setattr(desk.online, "lookup", slow)
    row = {"origin": "JFK", "distance": 1}
    first = asyncio.create_task(desk.answerer.answer(desk.predict([row]), "before"))
    await asyncio.to_thread(asked.wait, 10)
    desk.versions.champion, _ = desk.version("2")
    second = asyncio.create_task(desk.answerer.answer(desk.predict([row]), "after"))
    await desk.until(lambda: desk.answerer._batches._lookups.requests == 2)
    there.set()
    assert [(await task).version for task in (first, second)] == ["1", "2"]
    logged = {line["request_id"]: line["model_version"] for line in desk.lines()}
    assert logged == {"before": "1", "after": "2"}


async def test_defaults_are_answered_and_said(sit: Sit) -> None:
    desk = sit(online={"fallback": "defaults", "defaults": {"temp": 40.0, "sky": "grey"}})
    desk.versions.champion, _ = desk.version("5")
    outcome = await desk.answerer.answer(desk.predict([{"origin": "JFK", "distance": 1}]), "r")
    found = msgspec.json.decode(outcome.body)
    assert found["predictions"] == [
        {"prediction": 0.4, "fallback": "defaults", "feature_age_seconds": None}
    ]
    (line,) = desk.lines()
    assert (line["route"], line["online"]) == ("predict", ["temp", "sky"])
    assert line["features"] == {"temp": 40.0, "sky": "grey", "distance": 1.0}
    assert (line["entities"], line["fallback"]) == ({"origin": "JFK"}, "defaults")
    assert desk.count("evergreen_fallbacks_total", kind="defaults") == 1


async def test_classes_and_values_have_their_own_answers(sit: Sit) -> None:
    defaults = {"fallback": "defaults", "defaults": {"temp": 50.0}}
    desk = sit("multiclass_classification", online=defaults)
    desk.versions.champion, _ = desk.version("1", Task.MULTICLASS)
    asked = desk.predict([{"origin": "JFK", "distance": 1}])
    (found,) = msgspec.json.decode((await desk.answerer.answer(asked, "r")).body)["predictions"]
    assert found["probabilities"] == {"early": 0.25, "late": 0.25, "on time": 0.5}
    assert found["class"] == "on time"
    desk.versions.champion, _ = desk.version("2", Task.REGRESSION)
    (found,) = msgspec.json.decode((await desk.answerer.answer(asked, "r")).body)["predictions"]
    assert found["prediction"] == 0.5
    given = msgspec.json.decode((await desk.ask(20.0, 30.0)).body)
    assert given == {"predictions": [0.2, 0.3]}
    assert [line["prediction"] for line in desk.lines()] == [[0.25, 0.25, 0.5], 0.5, 0.2, 0.3]
