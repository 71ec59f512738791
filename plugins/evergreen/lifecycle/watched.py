"""The prediction log as monitoring reads it: a window's rows beside the labels known by then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration, Task
from evergreen.lifecycle.contracts import LabelReport, WatchedPartition, Window
from evergreen.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]


def read_window(
    store: Store,
    report: LabelReport,
    window: Window,
    columns: Sequence[str] | None = None,
    *,
    labels: bool = True,
) -> pd.DataFrame:
    """The window's rows of the prediction log, oldest partition first.

    :param columns: of the log, besides ``partition``, ``row_id``, ``event_timestamp``, ``label``
        and ``label_timestamp``; all when None.
    :param labels: False leaves them out, which is half of the work.
    :returns: ``label`` and ``label_timestamp`` are missing where no label was known by the
        report's ``as_of``.
    """
    import pandas as pd

    by_key = {part.partition: part for part in report.partitions}
    frames = [
        read_partition(store, by_key[key], report.as_of, columns, labels=labels)
        for key in window.partitions
    ]
    return pd.concat(frames, ignore_index=True)


def read_partition(
    store: Store,
    part: WatchedPartition,
    as_of: datetime,
    columns: Sequence[str] | None = None,
    *,
    labels: bool = True,
) -> pd.DataFrame:
    """One partition's rows, as `read_window` gives them."""
    wanted = (
        None if columns is None else list(dict.fromkeys(("row_id", "event_timestamp", *columns)))
    )
    log = store.get_table(part.predictions, wanted).assign(partition=part.partition)
    if not labels:
        return log
    known = known_labels(store.get_table(part.labels), as_of).set_index("row_id")
    return log.join(known[["label", "label_timestamp"]], on="row_id")


def known_labels(labels: pd.DataFrame, as_of: datetime) -> pd.DataFrame:
    """Of each row the label known by ``as_of``: the latest one, where it was corrected.

    :param labels: ``row_id``, ``label``, ``label_timestamp``; a row may stand there several times.
    """
    known = labels[labels["label"].notna() & (labels["label_timestamp"] <= as_of)]
    ordered = known.sort_values(["row_id", "label_timestamp"], kind="stable")
    return ordered.drop_duplicates("row_id", keep="last", ignore_index=True)


def logged_answers(declaration: Declaration, rows: pd.DataFrame) -> Array:
    """The logged answers, shaped as `evergreen.lifecycle.metrics` says."""
    if declaration.task is not Task.MULTICLASS:
        return rows["prediction"].to_numpy("float64")
    several = sum(str(name).startswith("prediction_") for name in rows.columns)
    return rows[[f"prediction_{k}" for k in range(several)]].to_numpy("float64")
