"""Aliases are followed: only what was registered and answers is taken, and the old one stays."""

import errno
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import pytest
import requests
from sklearn.linear_model import LinearRegression

from evergreen.lifecycle import connection, registry, tracking
from evergreen.serving import following
from evergreen.serving.loading import Cache
from tests.unit.serving.registered import ROWS, SOON, Life, answer, bring_back, flip, until


@contextmanager
def silent_listener() -> Iterator[str]:
    """An address that accepts and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def closed_port() -> Iterator[str]:
    with socket.socket() as listener:  # bound and not listening: nobody else gets it meanwhile
        listener.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_alias_is_followed_and_the_new_version_answers(life: Life) -> None:
    first, second = life.register(1.0), life.register(2.0)
    life.point(first)
    versions = life.replica()
    versions.start()
    assert versions.wait_ready(0)
    assert answer(versions) == pytest.approx(1.0)
    state = versions.state()
    assert versions.champion
    assert state == {
        "version": first,
        "wanted": first,
        "candidate": None,
        "mode": "shadow",
        "refused": {},
        "candidate_refused": {},
        "registry_problem": None,
        "from_cache": False,
        "loaded_at": versions.champion.loaded_at.isoformat(),
        "notes": {},
    }
    old = versions.champion
    life.point(second)
    until(lambda: versions.state()["version"] == second)
    assert answer(versions) == pytest.approx(2.0)
    assert versions.champion.uri == f"models:/{life.name}/{second}"
    life.point(first)
    until(lambda: versions.state()["version"] == first)
    assert versions.champion is old, "the version before is still in memory"


def test_a_champion_is_there_at_every_moment_of_a_swap(life: Life) -> None:
    numbers = [life.register(1.0), life.register(2.0), life.register(3.0)]
    life.point(numbers[0])
    versions = life.replica()
    versions.start()
    seen: set[tuple[str, float]] = set()
    ends = threading.Event()

    def ask() -> None:
        while not ends.is_set():
            champion = versions.champion
            assert champion
            seen.add((champion.number, round(float(champion.fitted.predict(ROWS)[0]), 6)))

    asking = threading.Thread(target=ask)
    asking.start()
    for number in [*numbers, *numbers]:
        life.point(number)
        until(lambda number=number: versions.state()["version"] == number)
    ends.set()
    asking.join(10)
    assert seen == {(number, float(number)) for number in numbers}


def nan_model() -> Any:
    made = LinearRegression().fit(ROWS, [1.0] * len(ROWS))
    made.intercept_ = float("nan")
    return made


def break_nothing(life: Life, number: str) -> None:
    """The version is bad by itself."""


def break_bytes(life: Life, number: str) -> None:
    flip(life.artifact(number))


def break_away(life: Life, number: str) -> None:
    shutil.rmtree(life.artifact(number).parent)


def distrust(life: Life, number: str) -> None:
    """A file that asks for a type nobody reviewed, under the digest it was registered with."""
    file = life.artifact(number)
    with ZipFile(file) as old:
        content = {name: old.read(name) for name in old.namelist()}
    schema = content["schema.json"].replace(b"LinearRegression", b"Nonsense")
    with ZipFile(file, "w", ZIP_STORED) as new:
        for name, kept in content.items():
            new.writestr(name, schema if name == "schema.json" else kept)
    tracking.client(life.registry).set_model_version_tag(
        life.name, number, registry.ARTIFACT, registry.files_digest(file.parent)
    )


@pytest.mark.parametrize(
    ("estimator", "broken", "reason"),
    [
        (nan_model, break_nothing, "which are not 3 finite answers"),
        (None, break_bytes, "they were changed. Restore them from a backup"),
        (None, break_away, "MLflow has lost its files"),
        (None, distrust, "Review them, then name them in training.trusted_types"),
    ],
)
def test_a_bad_version_is_refused_and_a_later_good_one_taken(
    life: Life,
    estimator: Callable[[], Any] | None,
    broken: Callable[[Life, str], None],
    reason: str,
) -> None:
    good, bad = (
        life.register(1.0),
        life.register(2.0, estimator=estimator and estimator(), own=True),
    )
    broken(life, bad)
    life.point(good)
    versions = life.replica()
    versions.start()
    life.point(bad)
    until(lambda: versions.state()["refused"])
    state = versions.state()
    assert (state["version"], state["wanted"]) == (good, bad)
    assert reason in state["refused"][bad]
    assert answer(versions) == pytest.approx(1.0)
    better = life.register(3.0)
    life.point(better)
    until(lambda: versions.state()["version"] == better)
    assert versions.state()["refused"] == {}
    assert answer(versions) == pytest.approx(3.0)


def test_a_refused_version_is_tried_again_when_the_alias_comes_back(life: Life) -> None:
    good, bad = life.register(1.0), life.register(2.0, own=True)
    whole = flip(life.artifact(bad))
    life.point(bad)
    versions = life.replica()
    versions.start()
    assert not versions.wait_ready(0)
    assert list(versions.state()["refused"]) == [bad]
    life.artifact(bad).write_bytes(whole)
    time.sleep(5 * SOON)  # several looks
    assert versions.champion is None, "not at each look"
    life.point(good)
    until(lambda: versions.state()["version"] == good)
    life.point(bad)
    until(lambda: versions.state()["version"] == bad)


def test_a_refused_version_is_tried_again_after_a_growing_while(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "AGAIN", (0.05, 0.15))
    bad = life.register(2.0, own=True)
    whole = flip(life.artifact(bad))
    life.point(bad)
    versions = life.replica()
    versions.start()
    pauses = set()

    def pause() -> float:
        refused = versions._champion.told.refused
        pauses.add(refused.pause if refused else 0.0)
        return max(pauses)

    until(lambda: pause() == 0.15)
    assert pauses <= {0.0, 0.05, 0.1, 0.15}
    life.artifact(bad).write_bytes(whole)
    until(lambda: versions.state()["version"] == bad)


def test_a_model_that_hangs_is_told_and_delays_no_other(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LOADING", 0.3)
    good, slow, ends = life.register(1.0), life.register(2.0), threading.Event()
    load = following.load_version

    def loading(declaration: Any, folder: Any, number: str, *rest: Any, **more: Any) -> Any:
        assert number != slow or ends.wait(30)
        return load(declaration, folder, number, *rest, **more)

    monkeypatch.setattr(following, "load_version", loading)
    life.point(slow)
    versions = life.replica()
    versions.start()
    assert "doesn't answer within 0.3 s" in versions.state()["registry_problem"]
    until(lambda: "hasn't answered 3 earlier calls" in versions.state()["registry_problem"])
    assert versions.state()["refused"] == {}, "the next replica may have the time"
    monkeypatch.setattr(following, "LOADING", 60.0)  # the good one has all the time it needs
    life.point(good)
    until(lambda: versions.state()["version"] == good)
    assert versions.state()["registry_problem"] is None
    ends.set()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        shutil.Error([("a", "b", "Too many open files")]),
        MemoryError(),
        requests.ConnectionError("reset"),
    ],
)
def test_what_is_the_replicas_trouble_is_told_and_refuses_nothing(
    life: Life, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, next_one, healed = life.register(1.0), life.register(2.0), threading.Event()
    load = following.load_version

    def loading(declaration: Any, folder: Any, number: str, *rest: Any, **more: Any) -> Any:
        if number == next_one and not healed.is_set():
            raise error
        return load(declaration, folder, number, *rest, **more)

    monkeypatch.setattr(following, "load_version", loading)
    life.point(good)
    versions = life.replica()
    versions.start()
    life.point(next_one)
    until(lambda: versions.state()["registry_problem"])
    state = versions.state()
    assert type(error).__name__ in state["registry_problem"]
    assert f"version {next_one} can't be loaded here for now" in state["registry_problem"]
    assert (state["version"], state["wanted"], state["refused"]) == (good, next_one, {})
    healed.set()
    until(lambda: versions.state()["version"] == next_one)
    assert versions.state()["registry_problem"] is None


def test_a_download_that_fails_on_its_way_refuses_nothing(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store's client has errors that are nobody's children, as botocore's are."""
    number, healed = life.register(1.0), threading.Event()
    download = Cache.download

    def downloading(*asked: Any) -> Any:
        if not healed.is_set():
            raise RuntimeError("EndpointConnectionError")
        return download(*asked)

    monkeypatch.setattr(Cache, "download", downloading)
    life.point(number)
    versions = life.replica()
    versions.start()
    state = versions.state()
    assert "can't be fetched for now: RuntimeError: Endpoint" in state["registry_problem"]
    assert state["refused"] == {}
    healed.set()
    until(lambda: versions.state()["version"] == number)


def test_a_replica_that_cannot_load_its_cache_says_so_and_tries_again(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, healed = life.register(1.0), threading.Event()
    life.point(number)
    before = life.replica()
    before.start()
    before.stop()
    load = following.load_version

    def loading(*asked: Any, **more: Any) -> Any:
        if not healed.is_set():
            raise MemoryError
        return load(*asked, **more)

    monkeypatch.setattr(following, "load_version", loading)
    versions = life.replica(tracking_uri=f"sqlite:///{life.workspace.home}/nowhere.db")
    versions.start()
    state = versions.state()
    assert "there is no such file; version" in state["registry_problem"]
    assert "MemoryError" in state["registry_problem"]
    assert state["refused"] == {}
    healed.set()
    until(lambda: versions.state()["version"] == number)


@pytest.mark.parametrize("address", [closed_port, silent_listener])
def test_an_unreachable_registry_at_the_start_is_told_soon(
    life: Life, address: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PATIENCE", 1.0)
    began = perf_counter()
    with address() as uri:
        versions = life.replica(tracking_uri=uri)
        versions.start()
        assert not versions.wait_ready(0)
        assert uri in versions.state()["registry_problem"]
        versions.stop()
    assert perf_counter() - began < 20
    assert versions.state()["version"] is None


def test_a_registry_that_goes_away_stops_no_answers(life: Life) -> None:
    first, second = life.register(1.0), life.register(2.0)
    life.point(first)
    file = life.workspace.home / "own.db"
    shutil.copy(life.registry.home / "mlflow.db", file)
    versions = life.replica(tracking_uri=f"sqlite:///{file}")
    versions.start()
    assert versions.state()["registry_problem"] is None
    file.rename(file.with_suffix(".away"))
    until(lambda: versions.state()["registry_problem"])
    state = versions.state()
    assert (state["version"], state["from_cache"]) == (first, False)
    assert answer(versions) == pytest.approx(1.0)
    life.point(second)
    bring_back(life, file)
    until(lambda: versions.state()["version"] == second)
    assert versions.state()["registry_problem"] is None


def test_looks_at_a_dead_registry_are_bounded_and_rarer(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LOOKING", 1.0)
    with silent_listener() as uri:
        follower = life.replica(tracking_uri=uri)._champion
        began = perf_counter()
        pauses = [follower.look() for _ in range(12)]
        assert 3 <= perf_counter() - began < 9, "three wait, the others don't"
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (2 * SOON, following.SLOWEST)
    assert "hasn't answered 3 earlier calls yet" in str(follower.told.problem)


def test_no_alias_is_said_and_a_champion_stays_without_it(
    life: Life, caplog: pytest.LogCaptureFixture
) -> None:
    number = life.register(1.0)
    versions = life.replica()
    versions.start()
    state = versions.state()
    assert (state["version"], state["wanted"], state["registry_problem"]) == (None, None, None)
    assert [r.message for r in caplog.records if "no version has the alias" in r.message] == [
        f"{life.name}: no version has the alias champion"
    ]
    life.point(number)
    until(lambda: versions.champion)
    life.point(None)
    until(lambda: versions.state()["wanted"] is None)
    assert versions.state()["version"] == number


def test_a_candidate_is_tried_beside_the_champion_and_promoted_at_once(life: Life) -> None:
    first, second = life.register(1.0), life.register(2.0)
    life.point(first)
    life.point(second, "candidate")
    versions = life.replica()
    versions.start()
    until(lambda: versions.candidate)
    candidate = versions.candidate
    assert candidate
    assert (versions.state()["version"], versions.state()["candidate"]) == (first, second)
    life.point(second)
    until(lambda: versions.state()["version"] == second)
    assert versions.champion is candidate
    assert versions.candidate is None, "nothing is tried beside itself"
    life.point(None, "candidate")
    life.point(first)
    until(lambda: versions.state()["version"] == first)
    until(lambda: versions.candidate is None)  # an alias's follower of its own


def test_a_broken_candidate_hurts_no_champion(life: Life) -> None:
    first, bad, third = life.register(1.0), life.register(2.0, own=True), life.register(3.0)
    flip(life.artifact(bad))
    life.point(first)
    life.point(third, "candidate")
    versions = life.replica()
    versions.start()
    until(lambda: versions.candidate)
    life.point(bad, "candidate")
    until(lambda: versions.state()["candidate_refused"])
    state = versions.state()
    assert (state["version"], state["candidate"]) == (first, None), "nobody wants the one before"
    assert list(state["candidate_refused"]) == [bad]
    assert state["refused"] == {}, "that would be the champion's"
    assert state["registry_problem"] is None
    life.point(None, "candidate")
    until(lambda: not versions.state()["candidate_refused"])
    life.point(third)
    until(lambda: versions.state()["version"] == third)


def test_versions_of_before_digests_and_examples_are_taken_and_it_is_said(life: Life) -> None:
    number = life.register(1.0, examples=False)
    client = tracking.client(life.registry)
    client.delete_model_version_tag(life.name, number, registry.ARTIFACT)
    life.point(number)
    versions = life.replica()
    versions.start()
    assert answer(versions) == pytest.approx(1.0)
    (note,) = versions.state()["notes"].values()
    assert note.startswith("registered without a digest of its files: taken as they are; logged")
    assert "takes no row of nothing (ValueError" in note, "a linear model knows no missing value"
