"""An answerer at work on a moody model, and what it writes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from evergreen.declaration import Task
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.fitted import FittedModel
from evergreen.serving.answering import Answerer
from evergreen.serving.batching import Batches
from evergreen.serving.metrics import Metrics
from evergreen.serving.online import OnlineFeatures
from evergreen.serving.outcomes import Outcome
from evergreen.serving.payloads import Asked, Expected, read_invocations, read_predict
from evergreen.serving.spool import Spool
from evergreen.serving.versions import Version
from tests.builders import workspace_in
from tests.feature_models import declare_flights
from tests.served_models import CLASSES, FEATURES, PRIMARY

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
RAISES, NAN = 13.0, 14.0


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
