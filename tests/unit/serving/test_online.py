"""Online features are looked up, judged by age, and met with the declared fallback when absent."""

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent
from time import perf_counter, sleep
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.lifecycle import features
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.sets import put_table
from evergreen.serving import onlinestore
from evergreen.serving.online import Looked, OnlineFeatures
from tests.builders import declare, workspace_in
from tests.feature_models import declare_flights

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MODULE = dedent("""
    from datetime import timedelta
    from feast import Entity, FeatureService, FeatureView, Field, FileSource
    from feast.types import Float64, String
    from feast.value_type import ValueType

    LOOKBACK = timedelta(hours=6)
    origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
    flight = Entity(name="flight", join_keys=["flight"], value_type=ValueType.INT64)
    weather = FeatureView(
        name="weather", entities=[origin], ttl=timedelta(hours=3),
        schema=[Field(name="temp", dtype=Float64), Field(name="sky", dtype=String)],
        source=FileSource(path="weather.parquet", timestamp_field="event_timestamp"),
    )
    delays = FeatureView(
        name="delays", entities=[origin, flight], ttl=timedelta(0),
        schema=[Field(name="delay", dtype=Float64)],
        source=FileSource(path="delays.parquet", timestamp_field="event_timestamp"),
    )
    example = FeatureService(name="example", features=[weather, delays])

    def prepare_weather(raw):
        return raw["weather"]

    def prepare_delays(raw):
        return raw["flights"]
""")
FOUND = ("temp", "sky", "delay")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two views are online; tests copy it."""
    folder = tmp_path_factory.mktemp("online")
    weather = pd.DataFrame(
        {
            "origin": ["JFK", "EWR", "LGA"],
            "event_timestamp": [NOON, NOON - timedelta(hours=3), NOON - timedelta(hours=5)],
            "temp": [1.0, None, 3.0],
            "sky": ["clear", None, "grey"],
        }
    )
    delays = pd.DataFrame(
        {
            "origin": ["JFK", "EWR"],
            "flight": [1, 2],
            "event_timestamp": [NOON - timedelta(days=30)] * 2,
            "delay": [10.0, 20.0],
        }
    )
    put(folder, weather=weather, delays=delays)
    return folder


def put(folder: Path, **tables: pd.DataFrame) -> None:
    workspace, declaration = workspace_in(folder), declared(folder)
    for view, frame in tables.items():
        frame["event_timestamp"] = pd.DatetimeIndex(frame["event_timestamp"]).as_unit("us")
        uri = put_table(workspace.store, f"tables/{view}.parquet", frame, {})
        start, end = NOON - timedelta(days=90), NOON + timedelta(days=1)
        features.materialize_tables(declaration, workspace, {view: [uri]}, start, end)


def declared(folder: Path, **online: Any) -> Any:
    return declare_flights(
        folder / "model",
        MODULE,
        data={"uri": "landing/{partition}.parquet", "entities": ["origin", "flight"]},
        serving={"online": online},
    )


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def opened(folder: Path) -> Iterator[Callable[..., OnlineFeatures]]:
    made: list[OnlineFeatures] = []

    def make(*, patience: float = 5.0, remembered: int = 100, **online: Any) -> OnlineFeatures:
        declaration, workspace = declared(folder, **online), workspace_in(folder)
        made.append(
            OnlineFeatures(
                declaration, workspace, clock=lambda: NOON, patience=patience, remembered=remembered
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def at(hours: float, origin: Any = "JFK", flight: Any = 1) -> dict[str, Any]:
    """A row asked so many hours after noon."""
    return {
        "origin": origin,
        "flight": flight,
        "event_timestamp": (NOON + timedelta(hours=hours)).isoformat(),
    }


def rows_of(looked: Looked) -> list[tuple[Any, ...]]:
    return list(zip(*looked.values.values(), strict=True))


def break_by_directory(folder: Path) -> None:
    online = folder / "feast" / "example" / "online.db"
    online.rename(online.with_name("away.db"))
    online.mkdir()


def mend(folder: Path) -> None:
    online = folder / "feast" / "example" / "online.db"
    online.rmdir()
    online.with_name("away.db").rename(online)


def pass_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is opened anew almost at once."""
    monkeypatch.setattr(onlinestore, "PAUSES", (0.01, 0.01))


def until(so: Callable[[], bool]) -> None:
    """Wait for what is done in the background; 30 s at most."""
    deadline = perf_counter() + 30
    while not so():
        assert perf_counter() < deadline, "it never came to that"
        sleep(0.01)


def test_what_is_online_is_found_by_key_each_once(opened: Callable[..., OnlineFeatures]) -> None:
    online = opened()
    assert online.names == FOUND
    assert online.keys == {
        "origin": Feature(name="origin", type="string"),
        "flight": Feature(name="flight", type="number"),
    }
    asked = [
        {"origin": "EWR", "flight": 2},
        {"origin": "JFK", "flight": 1.0},
        {"origin": "EWR", "flight": 2},
    ]
    looked = online.lookup(FOUND, asked)
    assert rows_of(looked) == [(None, None, 20.0), (1.0, "clear", 10.0), (None, None, 20.0)]
    assert (looked.fallback, looked.problem) == ([None] * 3, [None] * 3)
    assert looked.age_seconds == [30 * 86400.0] * 3, "the oldest of the views"
    assert online.problem is None


def test_only_the_views_of_wanted_features_count(opened: Callable[..., OnlineFeatures]) -> None:
    looked = opened().lookup(["sky", "temp"], [{"origin": "JFK"}])
    assert looked == Looked({"sky": ["clear"], "temp": [1.0]}, [None], [0.0], [None])


def test_nothing_asked_is_nothing_found(opened: Callable[..., OnlineFeatures]) -> None:
    assert opened().lookup(FOUND, []) == Looked({"temp": [], "sky": [], "delay": []}, [], [], [])


def test_a_feature_that_no_view_gives_is_a_problem(opened: Callable[..., OnlineFeatures]) -> None:
    looked = opened().lookup(["temp", "gone"], [at(0)])
    assert looked.problem == ["no feature view gives gone any more"]


def test_age_is_judged_at_the_rows_time_as_the_join_does(
    opened: Callable[..., OnlineFeatures],
) -> None:
    second = 1 / 3600
    asked = [at(hours) for hours in (-1, 0, 3, 3 + second)]
    looked = opened().lookup(["temp"], asked)
    assert looked.values == {"temp": [1.0, 1.0, 1.0, None]}
    assert looked.age_seconds == [0.0, 0.0, 3 * 3600.0, None]
    assert looked.problem[:3] == [None] * 3
    assert looked.problem[3] == (
        "features of view weather for origin JFK: stale: of 2026-01-01T12:00:00+00:00, 3:00:01 "
        "old where 3:00:00 is allowed"
    )


def test_max_age_stands_in_for_the_time_to_live(opened: Callable[..., OnlineFeatures]) -> None:
    looked = opened(max_age="1h").lookup(FOUND, [at(1), at(1.1)])
    assert looked.problem[0] is not None
    assert "view delays" in looked.problem[0]
    assert "view weather" not in looked.problem[0]
    assert looked.problem[1] is not None
    assert "view weather" in looked.problem[1]


def test_a_null_that_is_online_is_a_null(opened: Callable[..., OnlineFeatures]) -> None:
    looked = opened(fallback="defaults", defaults={"temp": 99.0}).lookup(
        ["temp", "sky"], [at(0, "EWR")]
    )
    assert looked == Looked({"temp": [None], "sky": [None]}, [None], [3 * 3600.0], [None])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (at(0, "BOS"), "origin BOS: empty"),
        ({"flight": 1}, "origin missing: empty"),
        ({"origin": None, "flight": 1}, "origin missing: empty"),
        ({"origin": float("nan"), "flight": 1}, "origin missing: empty"),
        ({"origin": 7, "flight": 1}, "origin is '7', not text: empty"),
        ({"origin": ["JFK"], "flight": 1}, "not text: empty"),
        ({"origin": "\ud800", "flight": 1}, "not text: empty"),
        ({"origin": "JFK"}, "flight missing, origin JFK: empty"),
        (
            {"origin": "JFK", "flight": "1"},
            "flight is '1', not a whole number of 64 bits, origin JFK: empty",
        ),
        ({"origin": "JFK", "flight": True}, "not a whole number of 64 bits, origin JFK: empty"),
        ({"origin": "JFK", "flight": 1.5}, "not a whole number of 64 bits, origin JFK: empty"),
        (
            {"origin": "JFK", "flight": float("inf")},
            "not a whole number of 64 bits, origin JFK: empty",
        ),
        ({"origin": "JFK", "flight": 1 << 63}, "not a whole number of 64 bits, origin JFK: empty"),
    ],
)
def test_a_key_that_finds_nothing_is_named_and_hurts_no_other_row(
    row: dict[str, Any], said: str, opened: Callable[..., OnlineFeatures]
) -> None:
    online = opened()
    looked = online.lookup(FOUND, [at(0), row])
    assert rows_of(looked)[0] == (1.0, "clear", 10.0)
    assert looked.problem[0] is None
    assert said in (looked.problem[1] or "")
    assert online.problem is None


def test_a_time_without_a_zone_is_an_error(opened: Callable[..., OnlineFeatures]) -> None:
    with pytest.raises(ValueError, match="has no zone; write it like"):
        opened().lookup(["temp"], [{"origin": "JFK", "event_timestamp": "2026-01-01T12:00"}])


EMPTY, STALE = at(0, "BOS", 1), at(4)


@pytest.mark.parametrize(("row", "said"), [(EMPTY, "empty"), (STALE, "stale: of")])
def test_empty_and_stale_are_rejected(
    row: dict[str, Any], said: str, opened: Callable[..., OnlineFeatures]
) -> None:
    looked = opened().lookup(["temp"], [row])
    assert said in (looked.problem[0] or "")
    assert (looked.values, looked.fallback) == ({"temp": [None]}, [None])


@pytest.mark.parametrize("row", [EMPTY, STALE])
def test_empty_and_stale_take_declared_defaults(
    row: dict[str, Any], opened: Callable[..., OnlineFeatures]
) -> None:
    looked = opened(fallback="defaults", defaults={"temp": 55.0}).lookup(["temp", "sky"], [row])
    assert looked == Looked({"temp": [55.0], "sky": [None]}, ["defaults"], [None], [None])


def test_a_row_of_two_views_may_be_part_default(opened: Callable[..., OnlineFeatures]) -> None:
    looked = opened(fallback="defaults", defaults={"delay": 0.0}).lookup(FOUND, [at(1, "JFK", 9)])
    assert rows_of(looked) == [(1.0, "clear", 0.0)]
    assert (looked.fallback, looked.age_seconds) == (["defaults"], [3600.0])


def test_a_stale_row_is_the_last_known_and_an_empty_one_was_never_read(
    opened: Callable[..., OnlineFeatures],
) -> None:
    looked = opened(fallback="last_known").lookup(["temp"], [STALE, EMPTY, at(3)])
    assert looked.values == {"temp": [1.0, None, 1.0]}
    assert looked.fallback == ["last_known", None, None]
    assert looked.age_seconds == [4 * 3600.0, None, 3 * 3600.0]
    assert looked.problem[1] == (
        "features of view weather for origin BOS: empty; this replica has read no earlier row"
    )


def test_a_row_that_vanished_is_answered_as_last_known(
    folder: Path, opened: Callable[..., OnlineFeatures]
) -> None:
    online = opened(fallback="last_known")
    assert online.lookup(["temp"], [at(1)]).fallback == [None]
    with sqlite3.connect(folder / "feast/example/online.db") as database:
        database.execute("DELETE FROM example_weather")
    looked = online.lookup(["temp"], [at(2), at(2, "LGA")])
    assert looked.values == {"temp": [1.0, None]}
    assert looked.fallback == ["last_known", None]
    assert looked.age_seconds == [2 * 3600.0, None]


def test_an_unreachable_store_is_rejected_its_reason_logged_and_healed(
    folder: Path,
    opened: Callable[..., OnlineFeatures],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pass_the_pause(monkeypatch)
    online = opened()
    break_by_directory(folder)
    looked = online.lookup(["temp"], [at(0), at(0, "EWR")])
    for problem, origin in zip(looked.problem, ("JFK", "EWR"), strict=True):
        assert problem == f"features of view weather for origin {origin}: unreachable"
    assert "unable to open database file" in str(online.problem)
    assert "OperationalError" in caplog.text
    mend(folder)
    until(lambda: online.lookup(["temp"], [at(0)]).problem == [None])
    assert online.problem is None


def test_an_unreachable_store_takes_declared_defaults(
    folder: Path, opened: Callable[..., OnlineFeatures]
) -> None:
    online = opened(fallback="defaults", defaults={"temp": 55.0, "sky": "clear"})
    break_by_directory(folder)
    looked = online.lookup(FOUND, [at(0)])
    assert rows_of(looked) == [(55.0, "clear", None)]
    assert (looked.fallback, looked.problem, looked.age_seconds) == (["defaults"], [None], [None])


def test_an_unreachable_store_is_answered_from_what_was_read(
    folder: Path, opened: Callable[..., OnlineFeatures]
) -> None:
    online = opened(fallback="last_known")
    online.lookup(FOUND, [at(0)])
    break_by_directory(folder)
    looked = online.lookup(["temp"], [at(1), at(1, "EWR")])
    assert looked.values == {"temp": [1.0, None]}
    assert looked.fallback == ["last_known", None]
    assert looked.age_seconds == [3600.0, None]
    assert "unreachable" in (looked.problem[1] or "")
    assert "has read no earlier row" in (looked.problem[1] or "")


def test_what_is_remembered_is_bounded_and_the_unused_goes_first(
    folder: Path, opened: Callable[..., OnlineFeatures]
) -> None:
    online = opened(fallback="last_known", remembered=2)
    for origin in ("JFK", "EWR", "JFK", "LGA"):
        online.lookup(["temp"], [at(0, origin)])
    break_by_directory(folder)
    looked = online.lookup(["temp"], [at(0, origin) for origin in ("JFK", "EWR", "LGA")])
    assert looked.values == {"temp": [1.0, None, 3.0]}


def test_a_locked_store_costs_one_batch_its_patience_and_the_next_ones_nothing(
    folder: Path, opened: Callable[..., OnlineFeatures], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next ones neither wait for a read nor for the store to be opened, which hangs too."""
    pass_the_pause(monkeypatch)
    opening, opens = threading.Event(), features.open_store

    def open_store(*given: Any) -> Any:
        opening.set()
        return opens(*given)

    online = opened(patience=0.3)
    monkeypatch.setattr(features, "open_store", open_store)
    lock = sqlite3.connect(folder / "feast/example/online.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    began = perf_counter()
    looked = online.lookup(["temp"], [at(0)])
    first = perf_counter() - began
    assert looked.problem == ["features of view weather for origin JFK: unreachable"]
    assert "doesn't answer within 0.3 s" in (online.problem or "")
    assert 0.3 <= first < 2
    assert opening.wait(10)  # SQLite waits five seconds for a lock, and so does who opens it
    began = perf_counter()
    for _ in range(10):
        assert online.lookup(["temp"], [at(0)]).problem[0] is not None
    assert perf_counter() - began < 2
    lock.execute("ROLLBACK")
    lock.close()
    until(lambda: online.lookup(["temp"], [at(0)]).problem == [None])


def test_a_registry_that_hangs_keeps_no_lookup(
    opened: Callable[..., OnlineFeatures], monkeypatch: pytest.MonkeyPatch
) -> None:
    online, there = opened(), threading.Event()
    asked = online._store._registry
    monkeypatch.setattr(type(asked), "due", property(lambda _: True))
    monkeypatch.setattr(asked, "marks", lambda opened: (there.wait(30), ())[1])
    began = perf_counter()
    for _ in range(10):
        assert online.lookup(["temp"], [at(0)]).values == {"temp": [1.0]}
    assert perf_counter() - began < 5
    there.set()


def test_a_store_that_nobody_made_is_not_made_by_asking(tmp_path: Path) -> None:
    declaration, workspace = declared(tmp_path), workspace_in(tmp_path)
    online = OnlineFeatures(declaration, workspace, clock=lambda: NOON)
    assert online.names == FOUND, "as the folder declares them"
    problem = online.lookup(["temp"], [at(0)]).problem[0]
    assert problem == "features of view weather for origin JFK: unreachable"
    assert "FileNotFoundError" in (online.problem or "")
    assert not (tmp_path / "feast/example/online.db").exists()
    assert not (tmp_path / "feast/example/registry.db").exists()
    online.close()


def test_definitions_applied_anew_are_followed(
    folder: Path, opened: Callable[..., OnlineFeatures]
) -> None:
    online = opened()
    changed = MODULE.replace('name="sky"', 'name="clouds"')
    declaration = declare_flights(
        folder / "model", changed, data={"entities": ["origin", "flight"]}
    )
    features.apply_definitions(declaration, workspace_in(folder), {})
    online.lookup(["temp"], [at(0)])
    assert online.names == ("temp", "clouds", "delay")


def test_a_store_that_is_replaced_by_one_that_hangs_keeps_nobody(
    folder: Path, opened: Callable[..., OnlineFeatures], monkeypatch: pytest.MonkeyPatch
) -> None:
    online, there, opens = opened(patience=0.3), threading.Event(), features.open_store

    def open_store(*given: Any) -> Any:
        assert there.wait(30)
        return opens(*given)

    monkeypatch.setattr(features, "open_store", open_store)
    (folder / "feast/example/registry.db").touch()
    began = perf_counter()
    for _ in range(10):
        assert online.lookup(["temp"], [at(0)]).problem != [None]
    assert 0.3 <= perf_counter() - began < 2
    assert online.problem == "it was replaced and is being opened"
    there.set()
    until(lambda: online.lookup(["temp"], [at(0)]).problem == [None])


def test_keys_may_be_found_in_a_column_of_another_name(
    folder: Path, opened: Callable[..., OnlineFeatures]
) -> None:
    mapped = MODULE.replace(
        "features=[weather, delays]",
        'features=[weather.with_join_key_map({"origin": "departs"}), delays]',
    )
    data = {"entities": ["origin", "flight", "departs"]}
    declaration = declare_flights(folder / "model", mapped, data=data)
    features.apply_definitions(declaration, workspace_in(folder), {})
    online = OnlineFeatures(declaration, workspace_in(folder), clock=lambda: NOON)
    assert list(online.keys) == ["flight", "origin", "departs"]
    looked = online.lookup(FOUND, [{"departs": "JFK", "origin": "EWR", "flight": 2}])
    assert rows_of(looked) == [(1.0, "clear", 20.0)]
    online.close()


def test_a_model_without_a_feature_module_has_nothing_online(tmp_path: Path) -> None:
    online = OnlineFeatures(declare(tmp_path), workspace_in(tmp_path), clock=lambda: NOON)
    assert (online.names, online.keys, online.problem) == ((), {}, None)
    assert online.lookup([], [{"origin": "JFK"}]).problem == [None]
    online.close()


@pytest.fixture(scope="module")
def shared(prepared: Path) -> Iterator[OnlineFeatures]:
    online = OnlineFeatures(
        declared(prepared), workspace_in(prepared), clock=lambda: NOON, patience=30.0
    )
    yield online
    online.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["JFK", "EWR", "LGA", "BOS", None, 7]),
            st.sampled_from([1, 2, 3, None, "x"]),
            st.integers(-2, 8),
        ),
        max_size=12,
    )
)
def test_a_batch_answers_each_row_as_if_it_came_alone(
    shared: OnlineFeatures, asked: list[tuple[Any, Any, int]]
) -> None:
    rows = [at(hours, origin, flight) for origin, flight, hours in asked]
    together = shared.lookup(FOUND, rows)
    for number, row in enumerate(rows):
        alone = shared.lookup(FOUND, [row])
        assert rows_of(alone) == [rows_of(together)[number]]
        assert alone.problem == [together.problem[number]]
        assert alone.age_seconds == [together.age_seconds[number]]
