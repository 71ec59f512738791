"""Feast beyond one machine: Redis, DynamoDB and a SQL registry serve.

The servers are real: PostgreSQL and Redis; DynamoDB is moto's.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent
from threading import Barrier
from time import monotonic, sleep
from typing import Any

import pandas as pd
import pytest

from evergreen.declaration import Declaration
from evergreen.errors import UnavailableError
from evergreen.lifecycle import features, featurestore
from evergreen.lifecycle.sets import put_table
from evergreen.serving import onlinestore
from evergreen.serving.onlinestore import OnlineStore
from evergreen.workspace import Workspace
from tests.builders import workspace_in
from tests.feature_models import MODULE, declare_flights
from tests.integration.services import (
    KEYS,
    REGION,
    PostgresService,
    RedisService,
    postgres,
    redis,
    s3,
)

pytestmark = [pytest.mark.minutes(1), pytest.mark.integration]

PROFILES = Path(__file__).parents[2] / "include" / "feast"
START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(days=1)


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresService]:
    with postgres() as service:
        yield service


@pytest.fixture(scope="module")
def cache() -> Iterator[RedisService]:
    with redis() as service:
        yield service


@pytest.fixture
def declaration(tmp_path: Path) -> Declaration:
    return declare_flights(tmp_path / "example", name=f"example_{secrets.token_hex(4)}")


@pytest.fixture
def workspace(
    tmp_path: Path, database: PostgresService, cache: RedisService, monkeypatch: pytest.MonkeyPatch
) -> Workspace:
    url = database.create("feast").replace("postgresql://", "postgresql+psycopg://")
    monkeypatch.setenv("EVERGREEN_FEAST_REGISTRY_URL", url)
    monkeypatch.setenv("EVERGREEN_FEAST_REDIS", cache.hostport)
    return replace(workspace_in(tmp_path), feature_store=PROFILES / "redis.yaml")


def table(*rows: tuple[str, float, float | None, str | None]) -> pd.DataFrame:
    """A feature table of (origin, hour, temp, sky)."""
    frame = pd.DataFrame(rows, columns=["origin", "hour", "temp", "sky"])
    times = pd.Timestamp(START) + pd.to_timedelta(frame.pop("hour"), unit="h")
    return frame.assign(event_timestamp=times.dt.as_unit("us"), temp=frame["temp"].astype(float))


def put(
    declaration: Declaration, workspace: Workspace, frame: pd.DataFrame, end: datetime = END
) -> None:
    uri = put_table(workspace.store, "tables/weather.parquet", frame, {})
    features.materialize_tables(declaration, workspace, {"weather": [uri]}, START, end)


def online(declaration: Declaration, workspace: Workspace) -> dict[str, list[Any]]:
    asked = [{"origin": "EWR"}, {"origin": "JFK"}]
    store = features.open_store(declaration, workspace)
    found: dict[str, list[Any]] = store.get_online_features(
        ["weather:temp", "weather:sky"], asked
    ).to_dict()
    return {name: found[name] for name in ("temp", "sky")}


def test_redis_keeps_the_newest_row_and_takes_a_corrected_one(
    declaration: Declaration, workspace: Workspace
) -> None:
    rows = table(("JFK", 1, 1.0, "a"), ("JFK", 5, 5.0, None), ("EWR", 5, 9.0, "e"))
    put(declaration, workspace, rows, START + timedelta(hours=5))
    assert online(declaration, workspace) == {"temp": [None, 1.0], "sky": [None, "a"]}
    for end in (END, START + timedelta(hours=5), END):
        put(declaration, workspace, rows, end)
        assert online(declaration, workspace) == {"temp": [9.0, 5.0], "sky": ["e", None]}
    put(declaration, workspace, table(("JFK", 5, None, "b"), ("EWR", 5 - 1e-4, 0.0, "older")))
    assert online(declaration, workspace) == {"temp": [9.0, None], "sky": ["e", "b"]}


def test_two_that_materialize_into_redis_at_once_end_with_the_newest(
    declaration: Declaration, workspace: Workspace
) -> None:
    uris = [
        put_table(workspace.store, f"tables/{h}.parquet", table(("JFK", h, float(h), "a")), {})
        for h in (3, 8, 5)
    ]
    with ThreadPoolExecutor(3) as pool:
        list(
            pool.map(
                lambda uri: features.materialize_tables(
                    declaration, workspace, {"weather": [uri]}, START, END
                ),
                uris,
            )
        )
    assert online(declaration, workspace)["temp"] == [None, 8.0]


def with_a_second_view() -> str:
    """The module with a view and an entity more."""
    more = dedent("""
        deck = Entity(name="deck", join_keys=["deck"], value_type=ValueType.STRING)
        clouds = FeatureView(
            name="clouds", entities=[deck], ttl=timedelta(hours=1),
            schema=[Field(name="cover", dtype=Float64)],
            source=FileSource(path="c.parquet", timestamp_field="event_timestamp"),
        )
        prepare_clouds = lambda raw: raw["weather"]
        example = """)
    return MODULE.replace("features=[weather])", "features=[weather, clouds])").replace(
        "\nexample = ", more
    )


def registered(declaration: Declaration, workspace: Workspace) -> list[set[str]]:
    registry = features.open_store(declaration, workspace).registry
    every = [registry.list_feature_views, registry.list_data_sources, registry.list_entities]
    return [{thing.name for thing in each(declaration.name)} - {"__dummy"} for each in every]


def test_the_sql_registry_is_applied_once_changed_in_place_and_healed(
    declaration: Declaration, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = featurestore.feature_home(declaration.name, workspace)
    one = [{"weather"}, {"weather_tables"}, {"origin"}]
    two = [{"weather", "clouds"}, {"weather_tables", "clouds_tables"}, {"origin", "deck"}]
    assert home.registered() is None
    assert features.apply_definitions(declaration, workspace, {})
    first = home.registered()
    assert not features.apply_definitions(declaration, workspace, {})
    assert registered(declaration, workspace) == one
    both = replace_entities(declaration, ["origin", "deck"])
    declare_flights(declaration.folder, with_a_second_view())
    assert features.apply_definitions(both, workspace, {})
    assert registered(declaration, workspace) == two
    assert home.registered() not in (None, first)

    declare_flights(declaration.folder)
    with monkeypatch.context() as killed:  # once the digest is gone, and once all but it is there
        killed.setattr(featurestore, "_gone", _killed)
        with pytest.raises(KeyboardInterrupt):
            features.apply_definitions(declaration, workspace, {})
    assert home.registered() is None, "what is half registered isn't marked as complete"
    with monkeypatch.context() as killed:
        from feast import FeatureStore

        whole = FeatureStore.apply
        killed.setattr(FeatureStore, "apply", lambda *a, **k: (whole(*a, **k), _killed()))
        with pytest.raises(KeyboardInterrupt):
            features.apply_definitions(declaration, workspace, {})
    assert home.registered() is None
    assert features.apply_definitions(declaration, workspace, {})
    assert registered(declaration, workspace) == one
    assert home.registered() == first


def _killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def replace_entities(declaration: Declaration, entities: list[str]) -> Declaration:
    changed = declaration.model_copy(
        update={"data": declaration.data.model_copy(update={"entities": entities})}
    )
    changed._folder = declaration.folder
    return changed


def test_models_that_share_a_registry_and_a_redis_do_not_meet(
    declaration: Declaration, workspace: Workspace, tmp_path: Path
) -> None:
    other = declare_flights(tmp_path / "other", name=f"{declaration.name}_b")
    put(declaration, workspace, table(("JFK", 1, 1.0, "a")))
    put(other, workspace, table(("JFK", 2, 2.0, "b")))
    assert online(declaration, workspace)["temp"] == [None, 1.0]
    assert online(other, workspace)["temp"] == [None, 2.0]
    assert registered(other, workspace)[0] == {"weather"}


def test_models_that_are_the_first_in_a_registry_make_its_tables_once(
    workspace: Workspace, tmp_path: Path, database: PostgresService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feast makes them in each process that opens it, and doesn't expect another to do so too."""
    url = database.create(f"fresh_{secrets.token_hex(4)}")
    monkeypatch.setenv(
        "EVERGREEN_FEAST_REGISTRY_URL", url.replace("postgresql://", "postgresql+psycopg://")
    )
    every = [declare_flights(tmp_path / f"m{n}", name=f"example_{n}") for n in range(4)]
    together = Barrier(len(every))

    def register(one: Declaration) -> bool:
        together.wait(60)
        return features.apply_definitions(one, workspace, {})

    with ThreadPoolExecutor(len(every)) as pool:
        assert list(pool.map(register, every)) == [True] * len(every)
    assert all(registered(one, workspace)[0] == {"weather"} for one in every)


def read_until(store: OnlineStore, wanted: Any, seconds: float = 30.0) -> Any:
    """What a store reads for JFK, once it is ``wanted``."""
    deadline = monotonic() + seconds
    while True:
        store.refresh()
        found = store.read([("JFK",)])
        said = found if isinstance(found, str) else found["weather"][0]
        values = said.values if isinstance(said, onlinestore.Row) else said
        if values == wanted or (callable(wanted) and wanted(values)):
            return values
        assert monotonic() < deadline, values
        sleep(0.05)  # a process on this machine is starting or stopping


def test_a_replica_reads_redis_while_the_registry_is_away_and_heals_after_both(
    declaration: Declaration,
    workspace: Workspace,
    database: PostgresService,
    cache: RedisService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onlinestore, "LOOKS", 0.1)
    monkeypatch.setattr(onlinestore, "PAUSES", (0.1, 0.1))
    store = OnlineStore(declaration, workspace)
    store.refresh()
    assert "nothing is registered" in str(store.problem)
    put(declaration, workspace, table(("JFK", 1, 1.0, "a")))
    read_until(store, {"temp": 1.0, "sky": "a"})

    database.stop()
    for _ in range(3):
        sleep(0.15)  # let the next look be due
        assert read_until(store, {"temp": 1.0, "sky": "a"}, 0.0)
    assert store.problem is None
    with pytest.raises(UnavailableError, match=r"the feature store at .*redis\.yaml"):
        features.apply_definitions(declaration, workspace, {})
    database.start()

    declare_flights(declaration.folder, MODULE.replace('name="sky"', 'name="clouds"'))
    features.apply_definitions(declaration, workspace, {})
    read_until(store, lambda _: [view.features for view in store.views] == [("temp", "clouds")])
    declare_flights(declaration.folder)
    features.apply_definitions(declaration, workspace, {})
    read_until(store, {"temp": 1.0, "sky": "a"})

    cache.pause()
    began = monotonic()
    read_until(store, lambda found: "doesn't answer within 1 s" in str(found))
    assert monotonic() - began < 5
    cache.resume()
    read_until(store, {"temp": 1.0, "sky": "a"})
    assert store.problem is None
    store.close()


def test_dynamodb_keeps_the_newest_row_and_tables_come_and_go(
    declaration: Declaration, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**KEYS, "AWS_DEFAULT_REGION": REGION}.items():
        monkeypatch.setenv(name, value)
    with s3() as cloud:
        profile = tmp_path / "dynamodb.yaml"
        shipped = (PROFILES / "dynamodb.yaml").read_text()
        endpoint = f"  type: dynamodb\n  endpoint_url: {cloud.url}"
        profile.write_text(shipped.replace("  type: dynamodb", endpoint))
        there = replace(workspace, feature_store=profile)
        rows = table(("JFK", 1, 1.0, "a"), ("JFK", 5, 5.0, None), ("EWR", 5, 9.0, "e"))
        for end in (END, START + timedelta(hours=5), END):
            put(declaration, there, rows, end)
            assert online(declaration, there) == {"temp": [9.0, 5.0], "sky": ["e", None]}
        put(declaration, there, table(("JFK", 5, None, "b")))
        assert online(declaration, there) == {"temp": [9.0, None], "sky": ["e", "b"]}

        tables = cloud.client("dynamodb").list_tables
        mine = f"{declaration.name}."
        both = replace_entities(declaration, ["origin", "deck"])
        declare_flights(declaration.folder, with_a_second_view())
        features.apply_definitions(both, there, {})
        assert {t for t in tables()["TableNames"] if t.startswith(mine)} == {
            f"{mine}weather",
            f"{mine}clouds",
        }
        declare_flights(declaration.folder)
        features.apply_definitions(declaration, there, {})
        assert [t for t in tables()["TableNames"] if t.startswith(mine)] == [f"{mine}weather"]
