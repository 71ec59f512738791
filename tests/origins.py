"""A version's origin and a report of what it answered, straight into the store: no model is fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from evergreen.lifecycle.contracts import (
    Evaluation,
    Feature,
    LabelReport,
    Origin,
    Reference,
    WatchedPartition,
    Window,
)
from evergreen.store import digest_of
from evergreen.workspace import Workspace
from tests.feature_sets import AS_OF, FEATURES, store_features


def store_origin(
    workspace: Workspace,
    rows: pd.DataFrame,
    *,
    features: Sequence[Feature] = FEATURES,
    importance: Mapping[str, float] | None = None,
    version: str = "1",
) -> Origin:
    """What a version was made from: rows as `tests.feature_sets` has them, the last day held out.

    :param rows: may hold ``prediction``, or ``prediction_0`` …: the answers for the holdout.
    """
    named = [name for name in rows.columns if name.startswith("prediction")] or ["prediction"]
    feature_set, reference = store_features(
        workspace, rows.drop(columns=named, errors="ignore"), features
    )
    held = rows[rows["event_timestamp"] >= feature_set.holdout_start]
    answers = {
        name.replace("prediction", "candidate"): held[name]
        if name in held
        else np.linspace(0, 1, len(held))
        for name in named
    }
    table = held[["partition", "row_id", "label"]].assign(**answers)
    key = digest_of([reference.digest, version])
    evaluation = Evaluation(
        model="example",
        mlflow_run=version,
        holdout_digest="h",
        holdout_rows=len(held),
        champion_version=None,
        predictions=workspace.store.put_table(f"tables/evaluation/{key}.parquet", table),
        metrics={},
        slices={},
        importance=dict(importance or {}),
    )
    return Origin(
        version=version,
        trained=Reference(kind="training", uri="", digest=version),
        features=reference,
        evaluation=evaluation.save(workspace.store),
    )


def report_of(
    workspace: Workspace, windows: Mapping[str, pd.DataFrame], origin: Origin | None
) -> LabelReport:
    """A window of one partition for each key (a day), none of whose labels is known."""
    parts, named = [], []
    for key, rows in windows.items():
        start = datetime.fromisoformat(f"{key}T00:00:00+00:00")
        when = pd.Timestamp(start).as_unit("us")
        log = rows.reset_index(drop=True).assign(row_id=range(len(rows)), event_timestamp=when)
        if not any(name.startswith("prediction") for name in rows):
            log = log.assign(prediction=np.linspace(0, 1, len(rows)))
        labels = pd.DataFrame({"row_id": [], "label": [], "label_timestamp": []})
        labels = labels.astype({"row_id": "int64", "label_timestamp": "datetime64[us, UTC]"})
        span = {"start": start, "end": start + timedelta(days=1), "version": "1"}
        parts.append(
            WatchedPartition(
                partition=key,
                revision=1,
                predictions=workspace.store.put_table(f"predictions/{key}.parquet", log),
                labels=workspace.store.put_table(f"tables/labels/{key}.parquet", labels),
                rows=len(rows),
                matured=0,
                **span,
            )
        )
        named.append(Window(key=key, partitions=(key,), fresh=True, learned=False, **span))
    return LabelReport(
        model="example",
        as_of=AS_OF,
        sequence=1,
        partitions=tuple(parts),
        windows=tuple(named),
        origins={origin.version: origin} if origin else {},
    )
