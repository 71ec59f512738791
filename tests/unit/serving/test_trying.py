"""A candidate answers its share or in the shadow, and keeps nobody but itself."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.servers import SMOKE
from evergreen.serving import answering, trying
from tests.served_models import FEATURES
from tests.unit.serving.desk import RAISES, Sit, answers

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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
    await desk.until(lambda: not desk.answerer._batches._shadow.requests)
    assert desk.answerer.stop()
    assert desk.count("evergreen_requests_total", version="2", role="shadow", code="503") == 0


async def test_a_shadow_that_cannot_keep_up_goes_without(
    sit: Sit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trying, "SHADOW_ROWS", 2)
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


async def test_a_shadow_that_hangs_keeps_nobody(sit: Sit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying, "SHADOW", 0.2)
    desk = sit(candidate={"mode": "shadow"})
    desk.versions.champion, _ = desk.version("1")
    desk.versions.candidate, hanging = desk.version("2", waits=True)
    assert answers(await desk.ask(20.0)) == [0.2]
    await asyncio.to_thread(hanging.asked.wait, 10)
    assert [answers(await desk.ask(float(k)))[0] for k in range(20, 40)] == [
        k / 100 for k in range(20, 40)
    ], "answered while the shadow is at its own"
    assert not hanging.gate.is_set()
    assert desk.answerer.hanging is None
    await desk.until(lambda: desk.answerer.given_up is not None)
    assert desk.answerer.given_up is not None
    version, reason = desk.answerer.given_up
    assert version is desk.versions.candidate
    assert reason.startswith("not asked any more as shadow: it took more than 0.2 s for 1 row")
    await desk.until(lambda: desk.answerer._batches._shadow.requests == 0)
    await desk.ask(20.0)
    assert desk.answerer._batches._shadow.requests == 0, "nothing more waits for it"
    hanging.gate.set()
    monkeypatch.undo()
    desk.versions.candidate, _ = desk.version("3")
    await desk.ask(20.0, request_id="again")
    await desk.until(lambda: desk.lines()[-1]["model_version"] == "3")
    assert {line["model_version"] for line in desk.lines()} == {"1", "3"}


async def test_a_canary_at_work_keeps_no_champions_answer(sit: Sit) -> None:
    desk = sit(candidate={"mode": "canary", "share": 0.5})
    desk.versions.champion, _ = desk.version("1")
    desk.versions.candidate, slow = desk.version("2", waits=True)
    both = [asyncio.create_task(desk.ask(20.0, request_id=f"{k}")) for k in range(40)]
    await desk.until(lambda: bool(slow.sizes) and any(task.done() for task in both))
    done = {task.result().role for task in both if task.done()}
    assert done == {"champion"}
    slow.gate.set()
    assert {(await task).role for task in both} == {"champion", "canary"}


async def test_a_canary_that_is_too_slow_is_not_asked_again(
    sit: Sit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trying, "CANARY", (0.1, 0.0, 0.1))
    desk = sit(candidate={"mode": "canary", "share": 0.999999})
    desk.versions.champion, moody = desk.version("1")
    desk.versions.candidate, hanging = desk.version("2", waits=True)
    late = await desk.ask(20.0, 30.0)
    assert (answers(late), late.version, late.role) == ([0.2, 0.3], "1", "champion")
    (warning,) = [record for record in caplog.records if "any more" in record.getMessage()]
    assert "version 2 is not asked any more as canary: it took more than" in warning.getMessage()
    assert "for 2 rows" in warning.getMessage()
    charged = {"version": "2", "role": "canary", "code": "504"}
    assert desk.count("evergreen_requests_total", **charged) == 1
    assert (await desk.ask(20.0)).role == "champion"
    assert (hanging.sizes, moody.sizes) == ([2], [2, 1])
    hanging.gate.set()
    monkeypatch.undo()
    desk.versions.candidate, _ = desk.version("3")
    assert (await desk.ask(20.0)).version == "3", "another candidate is tried"
    assert [line["model_version"] for line in desk.lines()] == ["1", "1", "1", "3"]


async def test_a_client_that_waited_too_long_for_the_canary_charges_it(
    sit: Sit, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = sit(candidate={"mode": "canary", "share": 0.999999})
    desk.versions.champion, _ = desk.version("1")
    desk.versions.candidate, hanging = desk.version("2", waits=True)
    first = asyncio.create_task(desk.ask(20.0))
    await asyncio.to_thread(hanging.asked.wait, 10)
    monkeypatch.setattr(answering, "PATIENCE", 0.05)
    late = await desk.ask(20.0)
    assert late.error is not None
    assert (late.error.status, late.version, late.role) == (504, "2", "canary")
    hanging.gate.set()
    await first


async def test_the_end_comes_after_what_the_canary_has(sit: Sit) -> None:
    desk = sit(candidate={"mode": "canary", "share": 0.999999})
    desk.versions.champion, _ = desk.version("1")
    desk.versions.candidate, slow = desk.version("2", waits=True)
    task = asyncio.create_task(desk.ask(20.0))
    await asyncio.to_thread(slow.asked.wait, 10)
    stopping = asyncio.create_task(asyncio.to_thread(desk.answerer.stop))
    await desk.until(lambda: desk.answerer._stopping)
    slow.gate.set()
    assert await stopping
    assert (answers(await task), (await task).version) == ([0.2], "2")


class _Flat:
    """Answers the same whatever it is asked."""

    gate = threading.Event()

    def predict_proba(self, frame: pd.DataFrame) -> Any:
        return np.full((len(frame), 2), 0.5)
