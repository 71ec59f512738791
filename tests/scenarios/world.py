"""A small world whose inputs, labels and their relation can be changed from month to month.

A label depends on ``signal`` by a valley (trees are needed, and only learn what they have seen),
and on ``idle`` not at all. Months are 600 rows; labels become known six hours later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

WATCHING: dict[str, Any] = {
    "training": {
        "estimator": "sklearn.ensemble.HistGradientBoostingClassifier",
        "parameters": {"max_iter": 30, "max_leaf_nodes": 6, "min_samples_leaf": 30},
        "holdout": {"length": "12d", "min_rows": 100},
        "window": {"min_rows": 100},
    },
    "monitoring": {"min_rows": 100, "drift": {"sample": 500, "on": ["inputs", "concept"]}},
    "triggers": {
        "new_data": None,
        "drift": {"violations": 1, "of": 1},
        "performance": {"violations": 1, "of": 1},
    },
}
WINTER, SUMMER = -2.0, 2.0


def month(
    key: str,
    *,
    season: float = WINTER,
    idle: float = 0.0,
    turned: bool = False,
    noise: bool = False,
    rows: int = 600,
) -> pd.DataFrame:
    """A month of rows, evenly spread.

    :param key: like ``2024-01``.
    :param season: where ``signal`` lies.
    :param idle: where the column that means nothing lies.
    :param turned: whether the label means the opposite of what it did.
    :param noise: whether the label means nothing at all.
    """
    import numpy as np
    import pandas as pd

    random = np.random.default_rng([*map(int, key.split("-"))])
    start = pd.Timestamp(key, tz="UTC")
    step = (start + pd.offsets.MonthBegin(1) - start) / rows
    times = pd.DatetimeIndex(start + step * np.arange(rows)).as_unit("us")
    signal = random.normal(season, 0.6, rows)
    logit = 4.0 * (np.abs(signal) - 2.0) * (-1 if turned else 1) * np.sign(-signal)
    chance = np.full(rows, 0.5) if noise else 1 / (1 + np.exp(-logit))
    return pd.DataFrame(
        {
            "event_timestamp": times,
            "row": np.arange(rows),
            "signal": signal,
            "idle": random.normal(idle, 1.0, rows),
            "late": (random.random(rows) < chance).astype(float),
            "label_timestamp": times + pd.Timedelta(hours=6),
        }
    )


def parted(frame: pd.DataFrame, first: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A month's rows without their labels, and the labels: ``row`` counts on from ``first``."""
    frame = frame.assign(row=frame["row"] + first)
    return (
        frame.drop(columns=["late", "label_timestamp"]),
        frame[["row", "late", "label_timestamp"]],
    )
