"""Spark, in local mode, joins features as DuckDB does: the same training set, row for row."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent

import numpy as np
import pandas as pd
import pytest

from evergreen.declaration import Declaration
from evergreen.lifecycle import features
from evergreen.lifecycle.sets import put_table
from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in
from tests.feature_models import declare_flights

pytestmark = [
    pytest.mark.minutes(1),
    pytest.mark.integration,
    # Feast says it of each SparkSource; what it may mean for the answers is tested here.
    pytest.mark.filterwarnings("ignore:The spark data source API is an experimental"),
]

PROFILES = Path(__file__).parents[2] / "include" / "feast"
START = datetime(2026, 1, 1, tzinfo=UTC)
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
        # A program, not a package; CI installs it and allows no skip.
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
