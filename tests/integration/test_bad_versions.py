"""Versions that passed the gate and are bad at work: a real replica meets them, and they go away."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from evergreen.errors import ServingError
from evergreen.ledger import records
from evergreen.lifecycle import registry
from evergreen.lifecycle.arbitration import arbitrate
from evergreen.lifecycle.baking import look_at_requests
from evergreen.lifecycle.compaction import compact
from evergreen.lifecycle.contracts import BakeReport
from evergreen.lifecycle.escalation import standing
from evergreen.lifecycle.servedlog import read_served
from evergreen.operators.promotion import PromoteModelOperator
from evergreen.operators.rollback import RollbackModelOperator
from evergreen.serving.online import OnlineFeatures
from tests.integration.fleet import Replica, Served, declared_replica, free_port

pytestmark = [pytest.mark.minutes(3), pytest.mark.integration, pytest.mark.timeout(900)]

NOW = datetime(2026, 1, 5, tzinfo=UTC)
#: What a person builds: version 1 as it is, later ones by what ``KIND`` says.
TRAINING = """
from pathlib import Path

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

LAST = {
    "good": HistGradientBoostingClassifier(max_iter=20),
    "slow": RandomForestClassifier(400, max_depth=4),
    "fragile": LogisticRegression(),  # refuses a distance that is missing
    "nan": GaussianNB(),  # a distance whose square is infinite has no likelihood in any class
}


def build():
    kind = "KIND"
    columns = ColumnTransformer([("same", FunctionTransformer(), ["distance"])])
    return make_pipeline(columns, LAST[kind])
"""
SECTIONS: dict[str, Any] = {
    "training": {"estimator": "training:build", "parameters": {}},
    "bake": {"watch": "60s", "requests": 20},
}


def build_as(served: Served, kind: str) -> None:
    """Let the next version be of a kind."""
    file = served.models / "example" / "training.py"
    file.write_text(dedent(TRAINING).replace("KIND", kind))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Version 1 is good, live, and verified."""
    served = Served.create(tmp_path_factory.mktemp("bad") / "project", **SECTIONS)
    build_as(served, "good")
    for day in (1, 2):
        served.land(day)
    served.promote("good")
    served.verify()
    return served


@pytest.fixture
def served(template: Served, tmp_path: Path) -> Served:
    return Served(shutil.copytree(template.folder, tmp_path / "project"))


@pytest.fixture
def replica(served: Served) -> Iterator[Replica]:
    with declared_replica(served) as replica:
        yield replica


def ask(replica: Replica, times: int, *, distance: float | None) -> list[int]:
    """The statuses of so many requests."""
    with httpx.Client(base_url=replica.address, timeout=60) as client:
        return [
            client.post(
                "/predict", json={"rows": [{"origin": "JFK", "distance": distance}]}
            ).status_code
            for _ in range(times)
        ]


def roll_back_by_machine(served: Served, report: BakeReport) -> None:
    """What the task after the bake does with its report."""
    bake = report.save(served.workspace.store).to_dict()
    operator = RollbackModelOperator(task_id="roll_back", model=served.declaration, bake=bake)
    run = SimpleNamespace(dag_id="example.bake", run_id="hourly")
    done = operator.run_stage(served.workspace, {"dag_run": run})  # type: ignore[arg-type, typeddict-item]  # all it looks at
    assert (done.version, done.replaced, done.person) == ("1", "2", None)


def went_back(served: Served) -> None:
    """Version 1 is live again, version 2 quarantined, and a person is asked to look."""
    with served.workspace.ledger.read() as session:
        live = records.champion(session, "example")
        assert live is not None
        assert (live.version, live.kind, live.person) == ("1", "rollback", None)
        assert list(records.quarantined(session, "example")) == ["2"]
        stopped = standing(session, served.declaration).stopped
    assert stopped is not None
    assert (stopped.cause, stopped.priority) == ("rollback", "P1")
    assert arbitrate(served.declaration, served.workspace, run_id="after").action == "investigate"


def look(served: Served, after: timedelta) -> BakeReport:
    """What a bake says so long after its first look."""
    return look_at_requests(served.declaration, served.workspace, now=NOW + after)


def test_a_version_that_fails_some_requests_is_sent_back(served: Served, replica: Replica) -> None:
    build_as(served, "fragile")
    served.land(3)
    assert served.promote("fragile").version == "2"
    assert look(served, timedelta(0)).outcome == "baking"
    assert set(ask(replica, 20, distance=10.0)) == {200}
    assert set(ask(replica, 20, distance=None)) == {500}
    found = look(served, timedelta(seconds=30))
    assert found.outcome == "roll_back", list(found.describe())
    assert "errors" in served.events()["disproved"]["reason"]
    decision = arbitrate(served.declaration, served.workspace, run_id="next")
    assert decision.action == "rollback"
    roll_back_by_machine(served, found)
    went_back(served)
    assert replica.version()["version"] == "1", "a rollback ends when its replicas say so"
    assert set(ask(replica, 5, distance=None)) == {200}


def test_a_version_that_answers_nan_is_sent_back(served: Served, replica: Replica) -> None:
    """On rows like those it learned from it is well, so the gate and the smoke requests pass it."""
    build_as(served, "nan")
    served.land(3)
    assert served.promote("nan").version == "2"
    assert look(served, timedelta(0)).outcome == "baking"
    assert set(ask(replica, 5, distance=10.0)) == {200}
    answer = replica.ask({"rows": [{"origin": "JFK", "distance": 1e200}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_failed")
    assert "NaN" not in answer.text
    assert set(ask(replica, 20, distance=1e200)) == {500}
    assert "version 2 answered NaN or infinity" in replica.log.read_text()
    found = look(served, timedelta(seconds=30))
    assert found.outcome == "roll_back", list(found.describe())
    roll_back_by_machine(served, found)
    went_back(served)
    assert set(ask(replica, 5, distance=1e200)) == {200}


def test_online_features_follow_a_rollback_by_value(served: Served) -> None:
    """A new version came with features computed otherwise; the old one gets its own back."""

    def online() -> list[float]:
        features = OnlineFeatures(served.declaration, served.workspace, clock=lambda: NOW)
        try:
            return features.lookup(["temp"], [{"origin": "JFK"}, {"origin": "BOS"}]).values["temp"]
        finally:
            features.close()

    own = online()
    assert all(50 < value < 150 for value in own)
    file = served.models / "example" / "features.py"
    otherwise = file.read_text().replace(
        'return raw["weather"]', 'return raw["weather"].assign(temp=raw["weather"]["temp"] + 1000)'
    )
    file.write_text(otherwise)
    assert served.promote("computed otherwise").version == "2"
    assert online() == [value + 1000 for value in own]
    served.roll_back("back to its own", "1")
    assert online() == own


def test_a_slow_version_is_sent_back(served: Served, replica: Replica) -> None:
    build_as(served, "slow")
    served.redeclare(bake={"latency_p95_ms": 20})
    served.land(3)
    served.promote("slow")
    look(served, timedelta(0))
    assert set(ask(replica, 30, distance=10.0)) == {200}
    found = look(served, timedelta(seconds=61))
    assert found.outcome == "roll_back", list(found.describe())
    assert "latency" in served.events()["disproved"]["reason"]


def test_a_good_version_bakes_well(served: Served, replica: Replica) -> None:
    served.land(3)
    served.promote("good again")
    assert look(served, timedelta(0)).outcome == "baking"
    assert set(ask(replica, 30, distance=10.0)) == {200}
    report = look(served, timedelta(seconds=61))
    found = served.events()
    assert "watched" in found, list(report.describe())
    assert "disproved" not in found
    _try_beside(served, replica)


def _try_beside(served: Served, replica: Replica) -> None:
    """The one before, as candidate: it answers in the shadow until it is champion itself."""
    registry.set_alias(served.workspace, "example", registry.CANDIDATE, "1")
    _until(lambda: replica.version()["candidate"] == "1")
    assert set(ask(replica, 10, distance=10.0)) == {200}
    shadow = 'evergreen_answers_total{model="example",role="shadow",version="1"} 10.0'
    _until(lambda: shadow in httpx.get(f"{replica.address}/metrics", timeout=10).text)
    served.roll_back("to the one before", "1")
    assert replica.version()["version"] == "1"
    assert registry.alias_version(served.workspace, "example", registry.CANDIDATE) is None
    _until(lambda: replica.version()["candidate"] is None)
    replica.stop()
    compact(served.declaration, served.workspace)
    rows = read_served(served.declaration, served.workspace, roles=("champion", "shadow"))
    tried = rows[rows["role"] == "shadow"]
    assert set(tried["model_version"]) == {"1"}
    beside = rows[(rows["role"] == "champion") & rows["request_id"].isin(tried["request_id"])]
    assert len(tried) == len(beside) == 10
    assert set(beside["model_version"]) == {"2"}


def _until(so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # between looks, until the deadline


def test_an_artifact_broken_after_registration_never_answers(
    served: Served, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replica refuses it, and the promotion is taken back at once, by its own task."""
    set_champion = registry.set_champion

    def break_it_first(workspace: Any, declaration: Any, version: str) -> None:
        if version == "2":
            _flip_a_byte(served, version)
        set_champion(workspace, declaration, version)

    monkeypatch.setattr(registry, "set_champion", break_it_first)
    served.land(3)
    given = served.judge("broken")
    operator = PromoteModelOperator(task_id="promote", model=served.declaration, **given)
    with pytest.raises(ServingError, match=r"refuses.*Rolled back: version 1 is live again"):
        operator.run_stage(served.workspace, None)  # type: ignore[arg-type]  # it asks for nothing of it
    replica.wait_for("1")
    assert set(ask(replica, 5, distance=10.0)) == {200}
    with served.workspace.ledger.read() as session:
        assert list(records.quarantined(session, "example")) == ["2"]
    assert registry.champion_version(served.workspace, served.declaration) == "1"


def test_a_registry_that_is_away_at_start_is_not_missed(served: Served, replica: Replica) -> None:
    """What the cache holds is served, and said; without a cache it waits, and says so."""
    replica.stop()
    away = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    again = Replica(served, replica.port, "again", away).start()
    try:
        assert set(ask(again, 3, distance=10.0)) == {200}
        state = again.version()
        assert (state["version"], state["from_cache"]) == ("1", True)
        assert state["registry_problem"]
    finally:
        again.stop()
    shutil.rmtree(served.home / "serving" / "example" / "versions")
    (served.home / "serving" / "example" / "current.json").unlink(missing_ok=True)
    empty = Replica(served, free_port(), "empty", away).start()
    try:
        assert httpx.get(f"{empty.address}/ping", timeout=10).status_code == 503
        assert ask(empty, 1, distance=10.0) == [503]
        assert empty.version()["registry_problem"]
    finally:
        empty.stop()


def _flip_a_byte(served: Served, version: str) -> None:
    """Change the registered model's file where it is kept."""
    from urllib.parse import urlsplit

    from evergreen.lifecycle import connection

    with connection.session(served.workspace) as mlflow:
        source = mlflow.get_model_version_download_uri("example", version)
        if source.startswith("models:/m-"):
            source = mlflow.get_logged_model(source.removeprefix("models:/")).artifact_location
    file = Path(urlsplit(source).path) / "model.skops"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(bytes(content))
