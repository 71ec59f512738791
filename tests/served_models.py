"""Small models that can be served: fitted in a moment, logged and registered as training does it.

The model is the one of `tests.feature_models`: ``temp`` and ``sky`` come from the online store by
``origin``, ``distance`` comes with the request, ``carrier`` is a slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evergreen.declaration import Declaration, Task
from evergreen.lifecycle import connection, features, registry, tracking
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.fitted import FittedModel
from evergreen.lifecycle.packaging import package
from evergreen.lifecycle.sets import put_table
from evergreen.workspace import Workspace
from tests.builders import workspace_in
from tests.feature_models import declare_flights

FEATURES = (
    Feature(name="temp", type="number"),
    Feature(name="sky", type="string"),
    Feature(name="distance", type="number"),
)
CLASSES = {
    Task.BINARY: ("0", "1"),
    Task.MULTICLASS: ("early", "late", "on time"),
    Task.REGRESSION: (),
}
PRIMARY = {
    Task.BINARY: "log_loss",
    Task.MULTICLASS: "log_loss",
    Task.REGRESSION: "mean_absolute_error",
}


@dataclass(frozen=True)
class Served:
    """A declared model with at least one registered version, in a workspace of its own."""

    declaration: Declaration
    workspace: Workspace

    @property
    def task(self) -> Task:
        return self.declaration.task


def make_served(
    folder: Path, *, task: str = "binary_classification", name: str = "example", **sections: Any
) -> Served:
    """A model whose version 1 is the champion. Nothing is online yet: see `put_online`.

    :param sections: of the model file, merged over the small ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    primary = {"primary": PRIMARY[Task(task)], "slices": ["carrier"]}
    declaration = declare_flights(
        folder / name, name=name, task=task, **{"evaluation": primary, **sections}
    )
    served = Served(declaration, workspace_in(folder))
    set_alias(served, new_version(served))
    return served


def rows_of(count: int = 400, *, seed: int = 0) -> pd.DataFrame:
    """Rows as models take them: the columns `FEATURES`, some values missing."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "temp": np.where(rng.random(count) < 0.1, np.nan, rng.normal(100, 20, count)),
            "sky": rng.choice(np.array(["clear", "cloudy", None], dtype=object), count),
            "distance": rng.uniform(0, 48, count),
        }
    )


def fit(task: Task, *, seed: int = 0) -> Any:
    """Trees over `FEATURES`, whose answers follow ``temp``, ``sky`` and ``distance``."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OrdinalEncoder

    frame = rows_of(seed=seed)
    said = (frame["temp"].fillna(100) - 100) / 20 + (frame["sky"] == "cloudy") * 1.0
    said += frame["distance"] / 24 - 1
    said += np.random.default_rng(seed + 1).normal(scale=0.5, size=len(frame))
    targets = {
        Task.BINARY: (said > 0.3).astype(int),
        Task.MULTICLASS: np.digitize(said, [-0.3, 0.7]),
        Task.REGRESSION: said * 10,
    }[task]
    kind = HistGradientBoostingClassifier if task.classifies else HistGradientBoostingRegressor
    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=float("nan"))
    columns = ColumnTransformer([("sky", encode, ["sky"])], remainder="passthrough")
    trees = kind(max_iter=10, early_stopping=False, random_state=seed)
    return Pipeline([("columns", columns), ("trees", trees)]).fit(frame, targets)


def new_version(
    served: Served, *, estimator: Any = None, seed: int | None = None, **tags: str
) -> str:
    """Log and register one more version, without moving an alias.

    :param estimator: fitted on `FEATURES`; trees that differ by ``seed`` when left out.
    :param tags: of the registered version, besides what registering sets, ``_`` for ``.``.
    :returns: its number.
    """
    declaration, workspace = served.declaration, served.workspace
    number = len(versions(served)) + 1
    made = fit(served.task, seed=number if seed is None else seed)
    fitted = FittedModel(
        estimator=estimator if estimator is not None else made,
        task=served.task,
        features=FEATURES,
        classes=CLASSES[served.task],
    )
    run = tracking.find_or_create_run(workspace, declaration, f"{declaration.name}-{number}", {})
    saved = package(declaration, fitted, rows_of(20))
    uri = registry.log_model(workspace, run, "model", fitted.estimator, tags={}, **saved)
    named = {name.replace("_", "."): value for name, value in tags.items()}
    return registry.register_version(workspace, declaration, run, uri, named)


def versions(served: Served) -> list[str]:
    """The numbers of the registered versions."""
    with connection.session(served.workspace) as mlflow:
        found = mlflow.search_model_versions(f"name = '{served.declaration.name}'")
    return sorted((str(version.version) for version in found), key=int)


def set_alias(served: Served, version: str | None, alias: str = "champion") -> None:
    """Point an alias at a version, or at none."""
    name = served.declaration.name
    with connection.session(served.workspace) as mlflow:
        if version is None:
            mlflow.delete_registered_model_alias(name, alias)
        else:
            mlflow.set_registered_model_alias(name, alias, version)


def put_online(
    served: Served, moment: datetime, values: dict[str, tuple[float | None, str | None]]
) -> None:
    """Put ``origin → (temp, sky)`` as of ``moment`` into the online store."""
    rows = [(origin, temp, sky) for origin, (temp, sky) in values.items()]
    table = pd.DataFrame(rows, columns=["origin", "temp", "sky"])
    table["temp"] = table["temp"].astype("float64")
    table["event_timestamp"] = pd.Series([pd.Timestamp(moment)] * len(rows)).dt.as_unit("us")
    name = f"features/{served.declaration.name}/{moment:%Y%m%dT%H%M%S}.parquet"
    uri = put_table(served.workspace.store, name, table, {})
    features.materialize_tables(
        served.declaration,
        served.workspace,
        {"weather": [uri]},
        moment - timedelta(hours=1),
        moment + timedelta(hours=1),
    )
