"""Small real feature sets for tests: five days of rows in the store, the last one the holdout."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from evergreen.lifecycle.contracts import Feature, FeaturePart, FeatureSet, Reference
from evergreen.store import digest_of
from evergreen.workspace import Workspace

START = datetime(2013, 1, 1, tzinfo=UTC)
DAYS = 5
AS_OF = START + timedelta(days=30)
FEATURES = (
    Feature(name="wind", type="number"),
    Feature(name="delay", type="number"),
    Feature(name="gust", type="number"),
    Feature(name="carrier", type="string"),
)


def example_rows(task: str = "binary", *, per_day: int = 120, seed: int = 0) -> pd.DataFrame:
    """Rows whose label follows `wind` and `carrier`; `gust` is mostly missing.

    :param task: ``binary`` (0 and 1), ``multiclass`` (three words) or ``regression``.
    """
    rng = np.random.default_rng(seed)
    n = per_day * DAYS
    wind, carrier = rng.normal(size=n), rng.choice(["AA", "UA", "WN"], n).astype(object)
    signal = wind + (carrier == "UA") + rng.normal(scale=0.5, size=n)
    carrier[rng.random(n) < 0.05] = None
    when = pd.date_range(START, periods=n, freq=timedelta(days=DAYS) / n, unit="us")
    labels: Any = {
        "binary": lambda: (signal > 0.3).astype("int64"),
        "multiclass": lambda: np.array(["early", "late", "on time"])[
            np.digitize(signal, [-0.3, 0.7])
        ],
        "regression": lambda: signal * 10,
    }[task]()
    return pd.DataFrame(
        {
            "partition": when.strftime("%Y-%m-%d"),
            "row_id": np.arange(n) % per_day,
            "event_timestamp": when,
            "label_timestamp": when + timedelta(hours=6),
            "label": labels,
            "origin": rng.choice(["EWR", "JFK"], n),
            "wind": wind,
            "delay": rng.normal(size=n),
            "gust": np.where(rng.random(n) < 0.7, np.nan, rng.normal(size=n)),
            "carrier": carrier,
        }
    )


def store_features(
    workspace: Workspace, rows: pd.DataFrame, features: Sequence[Feature] = FEATURES
) -> tuple[FeatureSet, Reference]:
    """Keep rows as a prepared feature set is kept: a part a day."""
    parts = []
    for key, part in rows.groupby("partition"):
        table = part.drop(columns="partition").reset_index(drop=True)
        digest = digest_of(table.to_json())
        start = datetime.fromisoformat(f"{key}T00:00:00+00:00")
        parts.append(
            FeaturePart(
                partition=str(key),
                start=start,
                end=start + timedelta(days=1),
                digest=digest,
                uri=workspace.store.put_table(f"tables/features/{digest}.parquet", table),
                rows=len(table),
            )
        )
    holdout = START + timedelta(days=DAYS - 1)
    before = int((rows["event_timestamp"] < holdout).sum())
    feature_set = FeatureSet(
        model="example",
        purpose="train",
        snapshot="s" * 64,
        as_of=AS_OF,
        features=tuple(features),
        parts=tuple(parts),
        rows=len(rows),
        training_end=holdout,
        holdout_start=holdout,
        training_rows=before,
        holdout_rows=len(rows) - before,
        digest_of_rows=digest_of([part.digest for part in parts]),
    )
    return feature_set, feature_set.save(workspace.store)
