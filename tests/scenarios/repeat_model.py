"""The model whose life the repeat test lives: a project in a folder, and days of data for it.

Small enough that a stage takes a second, and with all that stages do: Feast features, a suite
that sets rows aside, a search, a champion to beat, a refit.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.sdk import DAG

REPOSITORY = Path(__file__).parents[2]
NAME = "punctuality"
#: The champion learns from the first day; the second one is lived again and again.
DAYS = ("2026-01-01", "2026-01-02")
#: The families of DAGs in the order of a model's life; any other comes after, by name.
FAMILIES = ("ingest", "retrain", "score", "monitor")

_FILES = {
    "model.yaml": """
        name: punctuality
        task: binary_classification
        owner: {team: tests, contact: tests@example.com}
        data:
          uri: landing/departures/{partition}.parquet
          partition: day
          entities: [origin]
          label: {column: late, timestamp: label_timestamp}
        features: {module: features, service: punctuality}
        validation: {suite: expectations.json}
        training:
          estimator: sklearn.linear_model.LogisticRegression
          parameters: {max_iter: 200}
          search: {parameters: {C: [0.1, 1.0]}, candidates: 2, folds: 2}
          holdout: {length: 12h, min_rows: 100}
          refit: true
        evaluation:
          {primary: log_loss, metrics: [roc_auc], slices: [origin], min_slice_rows: 50}
        gate:
          promote_when: non_inferior
          margin: 0.2             # the verdict is a promotion, so that promoting is repeated too
          resamples: 200
          latency_p95_ms: 10000   # a busy machine is not what is tested
          memory_mb: 8192
        monitoring: {min_rows: 100, drift: {sample: 500, concept: [adwin, page_hinkley, ddm]}}
        rollback: {drill: null}
        triggers: {drift: {violations: 1, of: 1}, performance: {violations: 1, of: 1}}
    """,
    "features.py": """
        from datetime import timedelta
        from feast import Entity, FeatureService, FeatureView, Field, FileSource
        from feast.types import Float64
        from feast.value_type import ValueType

        LOOKBACK = timedelta(hours=3)
        origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
        traffic = FeatureView(
            name="traffic", entities=[origin], ttl=timedelta(hours=3),
            schema=[Field(name="mean_wind", dtype=Float64)],
            source=FileSource(path="traffic.parquet", timestamp_field="event_timestamp"),
        )
        punctuality = FeatureService(name="punctuality", features=[traffic])


        def prepare_traffic(raw):
            rows = raw["departures"]
            hour = rows["event_timestamp"].dt.ceil("h")
            return rows.groupby(["origin", hour])["wind"].mean().rename("mean_wind").reset_index()


        def prepare_requests(raw):
            return raw["departures"][["origin", "wind"]]
    """,
    "expectations.json": """
        {"name": "punctuality", "expectations": [
          {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "wind"}},
          {"type": "expect_column_values_to_be_between", "meta": {"on_failure": "quarantine"},
           "kwargs": {"column": "wind", "min_value": -3.0, "max_value": 3.0}}
        ]}
    """,
}


def make_project(folder: Path) -> list[DAG]:
    """The DAGs of this repository over the model, in the order of its life."""
    from airflow.dag_processing.dagbag import DagBag

    model = folder / "include" / "models" / NAME
    model.mkdir(parents=True)
    for name, text in _FILES.items():
        (model / name).write_text(dedent(text))
    hidden = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "dags", folder / "dags", ignore=hidden)
    bag = DagBag(folder / "dags")
    if bag.import_errors:
        raise RuntimeError(f"the DAGs can't be read: {json.dumps(bag.import_errors)}")
    known = {family: place for place, family in enumerate(FAMILIES)}
    places = {id_: known.get(family_of(dag), len(known)) for id_, dag in bag.dags.items()}
    return [bag.dags[id_] for id_ in sorted(places, key=lambda id_: (places[id_], id_))]


def family_of(dag: DAG) -> str:
    """``retrain`` of ``punctuality.retrain``."""
    return dag.dag_id.partition(".")[2]


def land(home: Path, day: str) -> None:
    """A day of departures from three airports, later with more wind; some wind can't be true."""
    import numpy as np
    import pandas as pd

    rng, count = np.random.default_rng(int(day[-2:])), 1440
    when = pd.date_range(day, periods=count, freq="1min", tz="UTC").as_unit("us")
    wind, origin = rng.normal(size=count).clip(-2.9, 2.9), rng.choice(["EWR", "JFK", "LGA"], count)
    late = wind + (origin == "LGA") + rng.normal(scale=0.7, size=count) > 0.5
    wind[rng.choice(count, 3)] = 9.0
    target = home / "landing" / "departures" / f"{day}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(
        {
            "event_timestamp": when,
            "origin": origin,
            "wind": wind,
            "late": late.astype("int64"),
            "label_timestamp": when + pd.Timedelta(minutes=30),
        }
    ).to_parquet(target, index=False)
