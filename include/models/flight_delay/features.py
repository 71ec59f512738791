"""What is known two hours before a departure: the weather, and how late flights are leaving.

Each view has a `prepare_<view>` function that turns raw rows into its feature table. A row's
`event_timestamp` is the time from which its values are known, so that the latest row at or before
a prediction time holds the features as of then, and nothing later can reach them.
"""

from collections.abc import Mapping
from datetime import timedelta

import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource
from feast.types import Float64
from feast.value_type import ValueType

LOOKBACK = timedelta(days=2)
"""Raw history that a partition's features read. A flight departs up to its delay (21 h 41 min at
most in 2013) plus 2 h after its `event_timestamp`, and counts for another `WINDOW`: 27 hours."""
WINDOW = timedelta(hours=3)
TIMEZONE = "America/New_York"
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

origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
carrier = Entity(name="carrier", join_keys=["carrier"], value_type=ValueType.STRING)

weather = FeatureView(
    name="weather",
    entities=[origin],
    ttl=timedelta(hours=6),
    schema=[Field(name=name, dtype=Float64) for name in MEASUREMENTS],
    source=FileSource(path="weather.parquet", timestamp_field="event_timestamp"),
)
origin_delays = FeatureView(
    name="origin_delays",
    entities=[origin],
    ttl=timedelta(days=1),
    schema=[
        Field(name="origin_delay", dtype=Float64, description="mean, minutes; null if none left"),
        Field(name="origin_departures", dtype=Float64, description="flights that left"),
    ],
    source=FileSource(path="origin_delays.parquet", timestamp_field="event_timestamp"),
)
carrier_delays = FeatureView(
    name="carrier_delays",
    entities=[origin, carrier],
    ttl=timedelta(days=1),
    schema=[
        Field(name="carrier_delay", dtype=Float64, description="mean, minutes; null if none left"),
        Field(name="carrier_departures", dtype=Float64, description="flights that left"),
    ],
    source=FileSource(path="carrier_delays.parquet", timestamp_field="event_timestamp"),
)
flight_delay = FeatureService(
    name="flight_delay", features=[weather, origin_delays, carrier_delays]
)


def prepare_weather(raw: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Observations as they became known, by origin. A report that names no gust means none."""
    weather = raw["weather"][["origin", "event_timestamp", *MEASUREMENTS]]
    weather = weather.drop_duplicates(["origin", "event_timestamp"], keep="last")
    return weather.assign(wind_gust=weather["wind_gust"].fillna(0.0))


def prepare_origin_delays(raw: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Departure delays of the last `WINDOW`, by origin."""
    return _recent_delays(raw["flights"], by=["origin"], prefix="origin")


def prepare_carrier_delays(raw: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Departure delays of the last `WINDOW`, by origin and carrier."""
    return _recent_delays(raw["flights"], by=["origin", "carrier"], prefix="carrier")


def prepare_requests(raw: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What the question itself says: route and local schedule, one row a flight, same index."""
    flights = raw["flights"]
    local = flights["scheduled_departure"].dt.tz_convert(TIMEZONE).dt
    return pd.DataFrame(
        {
            "carrier": flights["carrier"],
            "origin": flights["origin"],
            "dest": flights["dest"],
            "distance": flights["distance"].astype(float),
            "scheduled_minute": (local.hour * 60 + local.minute).astype(float),
            "scheduled_weekday": local.weekday.astype(float),
        }
    )


def _recent_delays(flights: pd.DataFrame, *, by: list[str], prefix: str) -> pd.DataFrame:
    """Mean delay and number of the flights with `departed_at` in (t - WINDOW, t], at every change.

    A flight enters the window when it departs and leaves it `WINDOW` later; both are rows. The
    running sums are of whole minutes, so they are exact however long the history before them.
    """
    left = flights.dropna(subset=["departed_at"])
    left = left[[*by, "departed_at"]].assign(minutes=left["dep_delay"].astype("int64"), flights=1)
    left = left.rename(columns={"departed_at": "event_timestamp"})
    gone = left.assign(
        event_timestamp=left["event_timestamp"] + WINDOW,
        minutes=-left["minutes"],
        flights=-left["flights"],
    )
    changes = pd.concat([left, gone]).groupby([*by, "event_timestamp"])[["minutes", "flights"]]
    now = changes.sum().groupby(level=by).cumsum()
    values = {
        f"{prefix}_delay": now["minutes"] / now["flights"].where(now["flights"] > 0),
        f"{prefix}_departures": now["flights"].astype(float),
    }
    return pd.DataFrame(values).reset_index()
