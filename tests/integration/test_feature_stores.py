"""Feast beyond one machine: Spark joins as DuckDB does; Redis, DynamoDB and a SQL registry serve.

The servers are real: PostgreSQL, Redis, Spark in local mode; DynamoDB is moto's.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent
from threading import Barrier
from time import monotonic, sleep
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evergreen.declaration import Declaration
from evergreen.errors import UnavailableError
from evergreen.lifecycle import features, featurestore
from evergreen.lifecycle.sets import put_table
from evergreen.serving import onlinestore
from evergreen.serving.onlinestore import OnlineStore
from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in
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

pytestmark = [
    pytest.mark.minutes(2),
    pytest.mark.integration,
    # Feast says it of each SparkSource; what it may mean for the answers is tested here.
    pytest.mark.filterwarnings("ignore:The spark data source API is an experimental"),
]

PROFILES = Path(__file__).parents[2] / "include" / "feast"
START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(days=1)
JOINED = dedent("""
    from datetime import timedelta
    from feast import Entity, FeatureService, FeatureView, Field, FileSource
    from feast.types import Float64, String
    from feast.value_type import ValueType

    LOOKBACK = timedelta(hours=6)
    origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
    carrier = Entity(name="carrier", join_keys=["carrier"], value_type=ValueType.STRING)
    flight = Entity(name="flight", join_keys=["flight"], value_type=ValueType.INT64)

    def view(name, entities, ttl, **schema):
        return FeatureView(
            name=name, entities=entities, ttl=ttl,
            schema=[Field(name=n, dtype=d) for n, d in schema.items()],
            source=FileSource(path=f"{name}.parquet", timestamp_field="event_timestamp"),
        )

    weather = view("weather", [origin], timedelta(hours=3), temp=Float64, sky=String)
    routes = view("routes", [origin, carrier], timedelta(seconds=90, microseconds=1), load=Float64)
    delays = view("delays", [flight], timedelta(0), delay=Float64, why=String)
    own = view("own", [origin, flight], timedelta(microseconds=1), gate=String)
    example = FeatureService(name="example", features=[weather, routes, delays, own])

    def prepare_weather(raw):
        return raw["weather"]

    prepare_routes = prepare_delays = prepare_own = prepare_weather
""")
KEYED = {"weather": ["origin"], "routes": ["origin", "carrier"], "delays": ["flight"]}
KEYED["own"] = ["origin", "flight"]


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The shipped profile's offline store, on a Spark of this process."""
    pytest.importorskip("pyspark", reason="pyspark isn't installed")
    if shutil.which("java") is None:
        pytest.skip("java isn't installed")
    import yaml
    from pyspark.sql import SparkSession

    # It tells that it closes its connection when pytest's streams are closed already.
    logging.getLogger("py4j").setLevel(logging.WARNING)
    folder = tmp_path_factory.mktemp("spark")
    offline = yaml.safe_load((PROFILES / "spark.yaml").read_text())["offline_store"]
    offline["spark_conf"] |= {
        "spark.master": "local[2]",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "512m",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
    }
    profile = folder / "feature_store.yaml"
    profile.write_text(yaml.safe_dump({"offline_store": offline}))
    yield profile
    session = SparkSession.getActiveSession()
    assert session is not None, "no test has joined on Spark"
    session.stop()


def known_tables(workspace: Workspace) -> dict[str, list[str]]:
    """Feature tables of two days a view: missing values, and rows of the same moment as others."""
    random = np.random.default_rng(5)
    tables: dict[str, list[str]] = {}
    for view, keys in KEYED.items():
        for day in range(2):
            count = 120
            step = timedelta(minutes=11) if view == "weather" else timedelta(seconds=61)
            since = pd.Timestamp(START + timedelta(days=day))
            frame = pd.DataFrame(
                {
                    "event_timestamp": [since + step * (n // 4) for n in range(count)],
                    "origin": random.choice(["a", "ab", "JFK", "Zürich"], count),
                    "carrier": random.choice(["c", "bc"], count),
                    "flight": random.integers(-3, 3, count),
                    "temp": np.where(random.random(count) < 0.2, np.nan, random.normal(size=count)),
                    "sky": [None if n % 5 == 0 else f"s{n}" for n in range(count)],
                    "load": random.normal(size=count),
                    "delay": random.normal(size=count),
                    "why": [None if day == 0 else f"w{n}" for n in range(count)],
                    "gate": [f"g{n}" for n in range(count)],
                }
            )
            frame["event_timestamp"] = pd.DatetimeIndex(frame["event_timestamp"]).as_unit("us")
            frame = frame.drop_duplicates([*keys, "event_timestamp"])
            name = f"{features.table_folder('example', view)}/{day}.parquet"
            tables.setdefault(view, []).append(put_table(workspace.store, name, frame, {}))
    return tables


def questions(count: int = 400) -> pd.DataFrame:
    """Rows asked at the moments of what is known, a microsecond beside them, and days later."""
    random = np.random.default_rng(6)
    ticks = random.choice([0, 1, -1, 90_000_001, 90_000_002], count)
    moments = [
        pd.Timestamp(START)
        + timedelta(days=int(n % 3), seconds=61 * int(random.integers(0, 40)))
        + timedelta(microseconds=int(tick))
        for n, tick in enumerate(ticks)
    ]
    origins = random.choice(np.array(["a", "ab", "JFK", "Zürich", "LGA", None], object), count)
    rows = pd.DataFrame(
        {
            "row_id": random.permutation(count),
            "event_timestamp": pd.DatetimeIndex(moments).as_unit("us"),
            "origin": pd.Series(origins, dtype="string"),
            "carrier": pd.Series(random.choice(["c", "bc"], count), dtype="string"),
            "flight": pd.Series(random.integers(-4, 4, count), dtype="Int64"),
        }
    )
    return pd.concat([rows, rows.head(20).assign(row_id=range(count, count + 20))])


@pytest.fixture
def joined(tmp_path: Path) -> tuple[Declaration, Workspace]:
    data = {"uri": "landing/{partition}.parquet", "entities": ["origin", "carrier", "flight"]}
    return declare_flights(tmp_path / "model", JOINED, data=data), workspace_in(tmp_path)


def test_spark_makes_the_training_set_that_duckdb_makes(
    joined: tuple[Declaration, Workspace], spark: Path
) -> None:
    declaration, workspace = joined
    definitions, tables, rows = (
        features.load(declaration, {}),
        known_tables(workspace),
        questions(),
    )
    before = rows.copy()
    ours = features.join(definitions, "example", rows, tables, workspace.store)
    sparks = features.join(
        definitions, "example", rows, tables, workspace.store, feature_store=spark
    )
    pd.testing.assert_frame_equal(ours, sparks, check_exact=True)
    pd.testing.assert_frame_equal(rows, before)
    for name in ("temp", "sky", "load", "delay", "why", "gate"):
        assert 0 < ours[name].isna().sum() < len(ours), f"{name} proves nothing"


def test_spark_keeps_the_answers_in_another_time_zone(
    joined: tuple[Declaration, Workspace], spark: Path
) -> None:
    from pyspark.sql import SparkSession

    declaration, workspace = joined
    definitions, tables = features.load(declaration, {}), known_tables(workspace)
    rows = questions(50)
    ours = features.join(definitions, "example", rows, tables, workspace.store)
    features.join(definitions, "example", rows, tables, workspace.store, feature_store=spark)
    session = SparkSession.getActiveSession()
    assert session is not None
    assert session.conf.get("spark.sql.session.timeZone") == "UTC"
    session.conf.set("spark.sql.session.timeZone", "America/St_Johns")
    try:
        elsewhere = features.join(
            definitions, "example", rows, tables, workspace.store, feature_store=spark
        )
    finally:
        session.conf.set("spark.sql.session.timeZone", "UTC")
    pd.testing.assert_frame_equal(ours, elsewhere, check_exact=True)


def test_spark_joins_a_model_without_a_feature_module(tmp_path: Path, spark: Path) -> None:
    workspace, columns = workspace_in(tmp_path), {"origin": "string", "distance": "int64"}
    definitions = features.load(declare(tmp_path), columns)
    times = pd.date_range(START, periods=6, freq="h", tz="UTC").as_unit("us")
    known = pd.DataFrame(
        {"event_timestamp": times, "origin": "JFK", "distance": np.arange(6.0)}
    ).drop(index=2)
    uri = put_table(
        workspace.store, f"{features.table_folder('example', 'example')}/0.parquet", known, {}
    )
    rows = pd.DataFrame({"row_id": range(6), "event_timestamp": times, "origin": "JFK"})
    both = [
        features.join(
            definitions, "example", rows, {"example": [uri]}, workspace.store, feature_store=profile
        )
        for profile in (None, spark)
    ]
    pd.testing.assert_frame_equal(*both, check_exact=True)
    assert both[1]["distance"].isna().tolist() == [False, False, True, False, False, False]


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
