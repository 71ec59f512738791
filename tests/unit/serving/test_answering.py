"""Answered together, judged alone, and in the log before anybody hears of it."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from evergreen.declaration import Task
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.fitted import FittedModel
from evergreen.lifecycle.servers import SMOKE
from evergreen.serving import answering, batching
from evergreen.serving.answering import Answerer
from evergreen.serving.batching import Batches, Outcome
from evergreen.serving.metrics import Metrics
from evergreen.serving.online import OnlineFeatures
from evergreen.serving.payloads import Asked, Expected, read_invocations, read_predict
from evergreen.serving.refusals import RequestError
from evergreen.serving.spool import Spool
from evergreen.serving.versions import Version
from tests.builders import workspace_in
from tests.feature_models import declare_flights
from tests.served_models import CLASSES, FEATURES, PRIMARY

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
RAISES, NAN = 13.0, 14.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Moody:
    """An estimator with a will of its own: says temp / 100, fails on 13, doesn't know about 14.

    :ivar gate: it answers only while this is set.
    :ivar sizes: rows of each call.
    """

    classes: int = 2
    gate: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    sizes: list[int] = field(default_factory=list)

    def predict(self, frame: pd.DataFrame) -> Any:
        self.sizes.append(len(frame))
        self.asked.set()
        assert self.gate.wait(10)
        if (frame["temp"] == RAISES).any():
            raise ValueError("unlucky\nversion 9 failed")
        return np.where(frame["temp"] == NAN, np.nan, frame["temp"] / 100)

    def predict_proba(self, frame: pd.DataFrame) -> Any:
        one = self.predict(frame)
        rest = [(1 - one) / (self.classes - 1)] * (self.classes - 1)
        return np.column_stack([*rest, one])


@dataclass
class Now:
    """Who answers at this moment."""

    champion: Version | None = None
    candidate: Version | None = None


@dataclass
class Desk:
    """An answerer at work, and what it writes."""

    answerer: Answerer
    versions: Now
    spool: Spool
    metrics: Metrics
    expected: Expected
    online: OnlineFeatures

    def version(
        self,
        number: str,
        task: Task = Task.BINARY,
        features: Sequence[Feature] = FEATURES,
        *,
        waits: bool = False,
    ) -> tuple[Version, Moody]:
        """A version of a moody model."""
        moody = Moody(classes=len(CLASSES[task]) or 2)
        if not waits:
            moody.gate.set()
        fitted = FittedModel(moody, task, tuple(features), CLASSES[task])
        return Version(number, fitted, "", "", NOW), moody

    async def ask(self, *temps: float, request_id: str = "r", **more: Any) -> Outcome:
        """Send rows with these temperatures to /invocations."""
        rows = [{"temp": temp, "sky": "clear", "distance": 1, **more} for temp in temps]
        return await self.answerer.answer(self.invocations(rows), request_id)

    def invocations(self, rows: Sequence[Any]) -> Asked:
        return read_invocations(msgspec.json.encode({"inputs": rows}), self.expected)

    def predict(self, rows: Sequence[Any]) -> Asked:
        return read_predict(msgspec.json.encode({"rows": rows}), self.expected)

    def lines(self) -> list[dict[str, Any]]:
        """The prediction log, in order."""
        files = sorted(self.spool.folder.glob("*.jsonl*"))
        return [msgspec.json.decode(line) for f in files for line in f.read_bytes().splitlines()]

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"model": "example", **labels}) or 0.0

    async def until(self, so: Callable[[], bool]) -> None:
        """Wait for the thread to come to something; 10 s at most."""
        for _ in range(1000):
            if so():
                return
            await asyncio.sleep(0.01)  # there is nothing to wait on: shadows tell nobody
        raise AssertionError("it never came to that")


Sit = Callable[..., Desk]


@pytest.fixture
def sit(tmp_path: Path) -> Iterator[Sit]:
    """Opens a desk for a model declared with these sections."""
    desks: list[Desk] = []

    def begin(task: str = "binary_classification", **serving: Any) -> Desk:
        evaluation = {"primary": PRIMARY[Task(task)], "slices": ["carrier"]}
        declaration = declare_flights(
            tmp_path / "model", task=task, evaluation=evaluation, serving=serving
        )
        workspace = workspace_in(tmp_path)
        versions = Now()
        online = OnlineFeatures(declaration, workspace, clock=lambda: NOW)
        spool, metrics = Spool(tmp_path / "spool", replica="here"), Metrics()
        batches = Batches(
            declaration,
            versions,
            online,
            spool,
            metrics.of("example"),
            replica="here",
            clock=lambda: NOW,
        )
        answerer = Answerer("example", batches)
        answerer.start()
        desks.append(Desk(answerer, versions, spool, metrics, Expected.of(declaration), online))
        return desks[-1]

    yield begin
    for desk in desks:
        for version in (desk.versions.champion, desk.versions.candidate):
            if version is not None:
                version.fitted.estimator.gate.set()
        assert desk.answerer.stop()
        desk.online.close()
        desk.spool.close()


def answers(outcome: Outcome) -> list[float]:
    """The probabilities of class 1 that a request was answered with."""
    assert outcome.error is None, outcome.error
    return [row[-1] for row in msgspec.json.decode(outcome.body)["predictions"]]


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
    monkeypatch.setattr(answering, "PATIENCE", 0.05)
    monkeypatch.setattr(answering, "HANGING", 0.02)
    desk = sit(candidate={"mode": "canary", "share": 0.999999})
    desk.versions.champion, moody = desk.version("1")
    desk.versions.candidate, slow = desk.version("2", waits=True)
    assert desk.answerer.hanging is None
    late = [await desk.ask(1.0), await desk.ask(1.0, request_id="evergreen-smoke-1")]
    for outcome in late:
        assert outcome.error is not None
        assert (outcome.error.status, outcome.error.code) == (504, "too_slow")
        assert outcome.error.reason == "no answer within 0.05 s"
        assert (outcome.version, outcome.role) == ("2", "canary"), "it is at work"
    assert desk.answerer.hanging
    assert desk.answerer.hanging > 0.02
    slow.gate.set()
    await desk.until(lambda: moody.sizes == [1])
    await desk.until(lambda: desk.answerer.hanging is None)


async def test_a_slow_log_is_no_versions_fault(sit: Sit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "PATIENCE", 0.2)
    desk, written = sit(), threading.Event()
    desk.versions.champion, moody = desk.version("1")
    monkeypatch.setattr(desk.spool, "append", lambda lines: written.wait(10))
    outcome = await desk.ask(1.0)
    written.set()
    assert outcome.error is not None
    assert (outcome.error.status, outcome.version, outcome.role) == (504, "none", "none")
    assert moody.sizes == [1]


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


async def test_a_canary_answers_its_share_of_the_entities_always_the_same(sit: Sit) -> None:
    desk = sit(candidate={"mode": "canary", "share": 0.3})
    desk.versions.champion, _ = desk.version("1")
    desk.versions.candidate, _ = desk.version("2")
    keys = [f"airport {k}" for k in range(300)]
    roles: list[dict[str, str]] = []
    for first in (1.0, 2.0):
        found = await asyncio.gather(*(desk.ask(first, origin=key) for key in keys))
        roles.append({key: outcome.role for key, outcome in zip(keys, found, strict=True)})
        assert {(o.role, o.version) for o in found} == {("champion", "1"), ("canary", "2")}
    assert roles[0] == roles[1]
    assert 60 <= list(roles[0].values()).count("canary") <= 120
    smoke = [await desk.ask(1.0, request_id=f"{SMOKE}-1-{k}") for k in range(30)]
    smoke += [await desk.ask(1.0, request_id=f"{SMOKE}-1-x", origin=key) for key in keys[:30]]
    assert {outcome.role for outcome in smoke} == {"champion"}
    unnamed = [await desk.ask(1.0, request_id=f"id {k}") for k in range(60)]
    assert {outcome.role for outcome in unnamed} == {"champion", "canary"}


async def test_a_canary_that_fails_is_charged_for_it_alone(sit: Sit) -> None:
    desk = sit(candidate={"mode": "canary", "share": 0.999999})
    desk.versions.champion, _ = desk.version("1")
    desk.versions.candidate, _ = desk.version("2")
    failed = await desk.ask(RAISES, origin="JFK")
    assert failed.error is not None
    assert (failed.error.status, failed.version, failed.role) == (500, "2", "canary")
    needs_more = (*FEATURES, Feature(name="gust", type="number"))
    desk.versions.candidate, _ = desk.version("3", features=needs_more)
    spared = await desk.ask(20.0, origin="JFK")  # right for the champion, so it answers
    assert (spared.error, spared.version, spared.role) == (None, "1", "champion")


async def test_a_shadow_answers_afterwards_and_only_into_the_log(sit: Sit) -> None:
    desk = sit(candidate={"mode": "shadow"})
    desk.versions.champion, _ = desk.version("1")
    desk.versions.candidate, moody = desk.version("2", waits=True)
    outcome = await desk.ask(20.0, 30.0, request_id="both", origin="JFK")
    assert (answers(outcome), outcome.version) == ([0.2, 0.3], "1")
    assert [line["role"] for line in desk.lines()] == ["champion"] * 2
    moody.gate.set()
    await desk.until(lambda: len(desk.lines()) == 4)
    champions, shadows = desk.lines()[:2], desk.lines()[2:]
    changed = {"role": "shadow", "model_version": "2"}
    assert shadows == [{**line, **changed} for line in champions]
    await desk.until(lambda: desk.count("evergreen_answers_total", version="2", role="shadow") == 2)
    asked = {"version": "2", "role": "shadow", "code": "200"}
    assert desk.count("evergreen_requests_total", **asked) == 1


async def test_a_failing_shadow_is_counted_and_hurts_nobody(sit: Sit) -> None:
    desk = sit(candidate={"mode": "shadow"})
    desk.versions.candidate, moody = desk.version("2", waits=True)
    kind = desk.version("1", features=(Feature(name="distance", type="number"),))[0]
    desk.versions.champion = replace(kind, fitted=replace(kind.fitted, estimator=_Flat()))
    outcome = await desk.ask(RAISES)
    assert outcome.error is None
    moody.gate.set()
    counted = {"version": "2", "role": "shadow", "code": "500"}
    await desk.until(lambda: desk.count("evergreen_requests_total", **counted) == 1)
    assert [line["role"] for line in desk.lines()] == ["champion"]


async def test_a_shadow_whose_features_cannot_be_had_is_charged_with_nothing(sit: Sit) -> None:
    desk = sit(candidate={"mode": "shadow"}, online={"fallback": "reject"})
    desk.versions.champion, _ = desk.version("1", features=FEATURES[2:])
    desk.versions.candidate, _ = desk.version("2")
    asked = desk.predict([{"origin": "JFK", "distance": 1, "temp": 20}])
    await desk.answerer.answer(asked, "r")
    await desk.until(lambda: not desk.answerer._batches.behind)
    assert desk.answerer.stop()
    assert desk.count("evergreen_requests_total", version="2", role="shadow", code="503") == 0


async def test_a_shadow_that_cannot_keep_up_goes_without(
    sit: Sit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "SHADOW_ROWS", 2)
    desk = sit(candidate={"mode": "shadow"})
    desk.versions.champion, moody = desk.version("1", waits=True)
    desk.versions.candidate, _ = desk.version("2")
    tasks = [asyncio.create_task(desk.ask(float(k), request_id=f"{k}")) for k in range(6)]
    await asyncio.to_thread(moody.asked.wait, 10)
    await asyncio.sleep(0)
    moody.gate.set()
    await asyncio.gather(*tasks)
    await desk.until(lambda: sum(line["role"] == "shadow" for line in desk.lines()) >= 2)
    shadows = [line["request_id"] for line in desk.lines() if line["role"] == "shadow"]
    assert desk.count("evergreen_shadow_dropped_total") == 6 - len(shadows)
    assert shadows[-2:] == ["4", "5"]


class _Flat:
    """Answers the same whatever it is asked."""

    gate = threading.Event()

    def predict_proba(self, frame: pd.DataFrame) -> Any:
        return np.full((len(frame), 2), 0.5)
