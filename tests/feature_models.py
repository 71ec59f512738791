"""A small model with a feature module, and raw days for it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pandas as pd

from evergreen.declaration import Declaration
from evergreen.lifecycle.contracts import FeatureSet, Partition, Snapshot, ValidationReport
from evergreen.lifecycle.preparation import prepare
from evergreen.store import digest_of
from evergreen.workspace import Workspace
from tests.builders import declare, snapshot_of, store_frame

AS_OF = datetime(2026, 1, 4, tzinfo=UTC)
DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")
MODULE = dedent("""
    from datetime import timedelta
    from feast import Entity, FeatureService, FeatureView, Field, FileSource
    from feast.types import Float64, String
    from feast.value_type import ValueType

    LOOKBACK = timedelta(hours=6)
    origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
    weather = FeatureView(
        name="weather", entities=[origin], ttl=timedelta(hours=3),
        schema=[Field(name="temp", dtype=Float64), Field(name="sky", dtype=String)],
        source=FileSource(path="weather.parquet", timestamp_field="event_timestamp"),
    )
    example = FeatureService(name="example", features=[weather])

    def prepare_weather(raw):
        return raw["weather"]

    def prepare_requests(raw):
        return raw["flights"][["origin", "distance"]]
""")


def declare_flights(folder: Path, module: str = MODULE, **sections: Any) -> Declaration:
    """The model, its module written into ``folder``."""
    folder.mkdir(exist_ok=True)
    (folder / "features.py").write_text(module)
    data = {
        "uri": "landing/flights/{partition}.parquet",
        "sources": {"weather": {"uri": "landing/weather/{partition}.parquet"}},
    }
    few = {"window": {"min_rows": 10}, "holdout": {"length": "1d", "min_rows": 20}}
    return declare(
        folder,
        **{
            "features": {"module": "features", "service": "example"},
            "data": data,
            "training": few,
            "evaluation": {"slices": ["carrier"]},
            **sections,
        },
    )


def flights(day: str, count: int = 48) -> pd.DataFrame:
    """Departures from JFK and EWR every half hour; each label is known a day later."""
    times = pd.date_range(day, periods=count, freq="30min", tz="UTC").as_unit("us")
    number = np.arange(count)
    return pd.DataFrame(
        {
            "event_timestamp": times,
            "origin": np.where(number % 2, "JFK", "EWR"),
            "carrier": "AA",
            "distance": number,
            "late": (number % 3 == 0).astype(float),
            "label_timestamp": times + pd.Timedelta(days=1),
        }
    )


def weather(day: str, hours: Sequence[int] = (1, 5, 22)) -> pd.DataFrame:
    """Observations; their values say when and where they were made."""
    rows = [(origin, hour) for origin in ("JFK", "EWR") for hour in hours]
    frame = pd.DataFrame(rows, columns=["origin", "hour"])
    hour = frame.pop("hour")
    times = pd.Timestamp(day, tz="UTC") + pd.to_timedelta(hour, unit="h")
    frame["event_timestamp"] = times.dt.as_unit("us")
    frame["temp"] = pd.Timestamp(day).day * 100.0 + hour
    frame["sky"] = [None if h == 5 else f"{origin}-{h}" for origin, h in rows]
    return frame


def store_days(workspace: Workspace, days: Sequence[str] = DAYS) -> list[Partition]:
    """Days of flights and weather, as registered partitions."""
    return [
        store_frame(workspace, flights(day), key=day, sources={"weather": weather(day)})
        for day in days
    ]


def validated(snapshot: Snapshot, **found: Any) -> ValidationReport:
    """A report about a snapshot."""
    return ValidationReport(model="example", snapshot=digest_of(snapshot.to_dict()), **found)


def prepared(
    declaration: Declaration, workspace: Workspace, *partitions: Partition, **choices: Any
) -> FeatureSet:
    """The feature set of partitions whose data are sound."""
    snapshot = snapshot_of(*partitions, **{"as_of": AS_OF, **choices})
    return prepare(declaration, workspace, snapshot, validated(snapshot))


def times_of_files(workspace: Workspace) -> dict[str, int]:
    """The store's tables, and when each was written."""
    tables = workspace.home / "store" / "tables"
    return {str(path): path.stat().st_mtime_ns for path in tables.rglob("*.parquet")}
