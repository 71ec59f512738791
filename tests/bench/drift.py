"""Drift of a million rows by eighteen columns: against a kept profile, and by other ways.

The reference is a million training rows in twelve partitions, profiled once. Ours reads the
prediction log, compares on all rows and renders Evidently's page on a sample, in a process that has
imported what a warm worker has. SciPy computes the same distances from both raw columns, in memory.
Evidently's preset gets all rows of a tenth of the data.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.ledger import Ledger
from evergreen.lifecycle.contracts import (
    Evaluation,
    Feature,
    FeaturePart,
    FeatureSet,
    LabelReport,
    Origin,
    Reference,
    WatchedPartition,
    Window,
)
from evergreen.store import Store
from evergreen.workspace import Workspace
from tests.bench.children import in_child
from tests.bench.figures import Figure
from tests.bench.flights import FOLDER

if TYPE_CHECKING:
    import pandas as pd

ROWS = 1_000_000
SMALLER = 100_000
PARTS = 12
NUMBERS = [f"n{k}" for k in range(14)]
CATEGORIES = [f"c{k}" for k in range(4)]
START = datetime(2013, 1, 1, tzinfo=UTC)
#: Of the task that detects drift.
SECONDS, GIGABYTES = 8.0, 1.5
STORE = Store(f"file://{FOLDER}/store")


def measure() -> Iterator[Figure]:
    """Seconds and peak memory of ours, and what others take in ratio to it."""
    profiled = in_child(_prepare)
    yield Figure("the profile, once", profiled, "s", detail=f"{ROWS:,} rows, {PARTS} partitions")
    seconds, compared, peak = in_child(_detect)
    yield Figure("drift of a window", seconds, "s", SECONDS, f"{ROWS:,} rows, log to HTML page")
    yield Figure("peak memory", peak, "MB", 1024 * GIGABYTES, "of that process, imports included")
    yield Figure("of it the distances", compared, "s", detail="18 columns in memory, kept profile")
    plain = in_child(_plain)
    yield Figure("numpy and SciPy", plain, "s", detail="the same distances, both sides in memory")
    yield Figure("our distances are faster by", plain / compared, "×")
    theirs = in_child(_theirs)
    detail = f"its preset on {SMALLER:,} rows of each side"
    yield Figure("Evidently", theirs, "s", detail=detail)


def _frame(seed: int, rows: int = ROWS) -> pd.DataFrame:
    """Numbers of several shapes with missing values, and categories of 5 to 500 values."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(seed)
    shapes = [rng.standard_normal, rng.exponential, rng.random]
    columns: dict[str, Any] = {}
    for k, name in enumerate(NUMBERS):
        drawn = shapes[k % 3](size=rows) + 0.01 * k * seed
        columns[name] = np.where(rng.random(rows) < 0.02, np.nan, drawn)
    for k, name in enumerate(CATEGORIES):
        codes = rng.zipf(1.5, size=rows) % (5, 20, 100, 500)[k]
        columns[name] = np.array([f"v{code}" for code in range(500)], dtype=object)[codes]
    return pd.DataFrame(columns)


def _declaration() -> Declaration:
    return Declaration.model_validate(
        {
            "name": "bench",
            "task": "binary_classification",
            "owner": {"team": "bench", "contact": "bench@example.com"},
            "data": {
                "uri": "landing/{partition}.parquet",
                "partition": "month",
                "entities": ["row"],
                "label": {"column": "late", "delay": "1h"},
            },
            "training": {"estimator": "sklearn.linear_model.LogisticRegression"},
            "evaluation": {"primary": "log_loss"},
        }
    )


def _workspace() -> Workspace:
    return Workspace(FOLDER, Ledger(f"sqlite:///{FOLDER}/ledger.db"), STORE, lambda: "")


def _prepare() -> float:
    """Write everything that a run finds; the seconds of the profile."""
    import numpy as np

    from evergreen.lifecycle.profiles import reference_profile

    when = START + timedelta(days=PARTS + 1)
    learned = _frame(0).assign(label=np.arange(ROWS) % 2, row_id=np.arange(ROWS))
    place = np.arange(ROWS) * PARTS // ROWS
    parts = []
    for k in range(PARTS):
        day = START + timedelta(days=k)
        rows = learned[place == k].assign(event_timestamp=day, label_timestamp=day)
        uri = STORE.put_table(f"tables/parts/{k}.parquet", rows)
        end = day + timedelta(days=1)
        parts.append(
            FeaturePart(
                partition=f"{day:%Y-%m-%d}", start=day, end=end, digest="", uri=uri, rows=len(rows)
            )
        )
    features = FeatureSet(
        model="bench",
        purpose="train",
        snapshot="",
        as_of=when,
        features=(
            *(Feature(name=name, type="number") for name in NUMBERS),
            *(Feature(name=name, type="string") for name in CATEGORIES),
        ),
        parts=tuple(parts),
        rows=ROWS,
        training_end=parts[-1].end,
        holdout_start=parts[-1].start,
    )
    answers = learned[["label"]].assign(candidate=np.linspace(0, 1, ROWS))
    evaluation = Evaluation(
        model="bench",
        mlflow_run="",
        holdout_digest="",
        holdout_rows=ROWS,
        champion_version=None,
        predictions=STORE.put_table("tables/evaluation.parquet", answers),
        metrics={},
        slices={},
        importance=dict.fromkeys([*NUMBERS, *CATEGORIES], 1.0),
    )
    origin = Origin(
        version="1",
        trained=Reference(kind="training", uri="", digest=""),
        features=features.save(STORE),
        evaluation=evaluation.save(STORE),
    )
    STORE.put_bytes("origin.json", origin.model_dump_json().encode())
    log = _frame(1).assign(
        row_id=np.arange(ROWS), event_timestamp=when, prediction=np.linspace(0, 1, ROWS)
    )
    STORE.put_table("predictions.parquet", log)
    labels = learned[["row_id", "label"]].assign(label_timestamp=when)
    STORE.put_table("labels.parquet", labels)
    del learned, log, labels, answers
    began = time.perf_counter()
    reference_profile(_declaration(), _workspace(), origin)
    return time.perf_counter() - began


def _report() -> LabelReport:
    origin = Origin.model_validate_json(STORE.read_bytes("origin.json"))
    start = START + timedelta(days=PARTS + 1)
    span: dict[str, Any] = {"start": start, "end": start + timedelta(days=1), "version": "1"}
    key = f"{start:%Y-%m-%d}"
    part = WatchedPartition(
        partition=key,
        revision=1,
        predictions=STORE.uri("predictions.parquet"),
        labels=STORE.uri("labels.parquet"),
        rows=ROWS,
        matured=ROWS,
        **span,
    )
    window = Window(key=key, partitions=(key,), fresh=True, learned=False, **span)
    return LabelReport(
        model="bench",
        as_of=span["end"],
        sequence=1,
        partitions=(part,),
        windows=(window,),
        origins={"1": origin},
    )


def _detect() -> tuple[float, float, float]:
    """Seconds of the stage and of its distances alone, and peak memory in MB."""
    import evidently.presets  # noqa: F401 - a warm worker has it
    import pandas as pd
    import scipy.stats  # noqa: F401 - a warm worker has it

    from evergreen.lifecycle.distances import compare_column
    from evergreen.lifecycle.drift import detect_drift
    from evergreen.lifecycle.profiles import reference_profile

    declaration, workspace, report = _declaration(), _workspace(), _report()
    began = time.perf_counter()
    found = detect_drift(declaration, workspace, report)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert found.windows[0].report
    reference = reference_profile(declaration, workspace, report.origins["1"])
    log = pd.read_parquet(STORE.path("predictions.parquet"))
    began = time.perf_counter()
    for name, profile in reference.columns.items():
        compare_column(declaration, name, profile, log[name])
    return seconds, time.perf_counter() - began, peak


def _plain() -> float:
    """The same distances from raw columns, as one would write them by hand."""
    import pandas as pd
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import wasserstein_distance

    learned, now = _frame(0), _frame(1)
    began = time.perf_counter()
    for name in NUMBERS:
        before, after = learned[name].dropna(), now[name].dropna()
        wasserstein_distance(before, after) / before.std(ddof=0)
    for name in CATEGORIES:
        shares = [side[name].value_counts(normalize=True) for side in (learned, now)]
        jensenshannon(*pd.concat(shares, axis=1).fillna(0.0).to_numpy().T)
    return time.perf_counter() - began


def _theirs() -> float:
    import warnings

    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    warnings.simplefilter("ignore")
    definition = DataDefinition(numerical_columns=NUMBERS, categorical_columns=CATEGORIES)
    sides = [Dataset.from_pandas(_frame(k, SMALLER), data_definition=definition) for k in (1, 0)]
    preset = DataDriftPreset(num_method="wasserstein", cat_method="jensenshannon")
    began = time.perf_counter()
    Report([preset]).run(*sides).get_html_str(as_iframe=False)
    return time.perf_counter() - began
