"""Evaluate: candidate, champion and a naive baseline answer the same rows, anew each time.

Nothing here judges; it measures, and keeps every answer so that the gate can resample them. A
champion that can't answer these rows is a finding with a reason, not a failure.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import UnavailableError
from evergreen.lifecycle import plots, tracking
from evergreen.lifecycle.contracts import Evaluation, FeatureSet, TrainedModel
from evergreen.lifecycle.fitted import FittedModel, input_frame, load_fitted, shaped, targets
from evergreen.lifecycle.metrics import calibration, measure, measure_all
from evergreen.lifecycle.sets import read_rows
from evergreen.store import digest_of
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]

SAMPLE = 2_000
REPEATS = 3


@dataclass(frozen=True)
class _Holdout:
    """The rows that everyone answers.

    :ivar labels: class indices or values, shape (n,).
    """

    rows: pd.DataFrame
    labels: Array

    @cached_property
    def digest(self) -> str:
        """The sha256 of which rows these are, and of their labels, in order."""
        sha = hashlib.sha256("\n".join(self.rows["partition"].astype(str)).encode())
        sha.update(self.rows["row_id"].to_numpy("int64").tobytes())
        sha.update(self.labels.astype("float64").tobytes())
        return sha.hexdigest()


def evaluate(
    declaration: Declaration,
    workspace: Workspace,
    trained: TrainedModel,
    feature_set: FeatureSet,
    *,
    champion: tuple[str, str] | None,
    as_of: datetime,
) -> Evaluation:
    """Score candidate, champion and baseline on the holdout and log what was found.

    :param champion: the live version and its model URI, or None before the first.
    :raises TrainingError: when the candidate can't be loaded, or the holdout holds a class that
        it never saw.
    """
    rows = read_rows(workspace.store, feature_set, "holdout").reset_index(drop=True)
    holdout = _Holdout(rows, targets(declaration.task, rows["label"], trained.classes))
    models = {"candidate": load_fitted(workspace, declaration, trained.model_uri)}
    answers = {"candidate": models["candidate"].predict(rows)}
    problem = None
    if champion:
        live = _ask_champion(declaration, workspace, champion[1], trained, rows)
        if isinstance(live, str):
            problem = live
        else:
            models["champion"], answers["champion"] = live
    answers["baseline"] = _baseline(declaration, workspace, trained, feature_set, len(rows))
    importances = _importances(declaration, models, holdout)
    asked = {"candidate": trained.model_uri, "champion": champion and champion[1]}
    result = Evaluation(
        model=declaration.name,
        mlflow_run=trained.mlflow_run,
        holdout_digest=holdout.digest,
        holdout_rows=len(rows),
        champion_version=champion[0] if champion else None,
        champion_problem=problem,
        classes=trained.classes,
        predictions=_keep(declaration, workspace, asked, holdout, answers),
        metrics={who: measure_all(declaration, holdout.labels, a) for who, a in answers.items()},
        slices=_slices(declaration, holdout, answers),
        calibration=calibration(declaration.task, holdout.labels, answers["candidate"]),
        importance=importances["candidate"],
        importance_change=_change(importances),
    )
    measured = {f"{who}.{k}": v for who, found in result.metrics.items() for k, v in found.items()}
    measured |= {f"candidate.{name}": value for name, value in result.calibration.items()}
    tracking.log_metrics(workspace, trained.mlflow_run, measured, as_of)
    for name, figure in plots.figures(declaration.task, holdout.labels, answers, result.importance):
        tracking.log_figure(workspace, trained.mlflow_run, f"evaluation/{name}.png", figure)
    return result


def _ask_champion(
    declaration: Declaration,
    workspace: Workspace,
    uri: str,
    trained: TrainedModel,
    rows: pd.DataFrame,
) -> tuple[FittedModel, Array] | str:
    """The champion and its answers, or why there are none."""
    import numpy as np

    try:
        model = load_fitted(workspace, declaration, uri)
        if missing := [f.name for f in model.features if f.name not in rows.columns]:
            return f"it needs {', '.join(missing)}, which the features no longer have"
        if (model.task, model.classes) != (declaration.task, trained.classes):
            return (
                f"it answers {model.task} {', '.join(model.classes)}; the candidate answers "
                f"{declaration.task} {', '.join(trained.classes)}"
            )
        answers = model.predict(rows)
    except UnavailableError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a foreign model does is the finding
        return f"{type(error).__name__}: {error}"
    if not np.isfinite(answers).all():
        return "it answers NaN or infinity for some rows"
    return model, answers


def _baseline(
    declaration: Declaration,
    workspace: Workspace,
    trained: TrainedModel,
    feature_set: FeatureSet,
    rows: int,
) -> Array:
    """What a model that looks at labels only would answer ``rows`` times."""
    import numpy as np
    from sklearn.dummy import DummyClassifier, DummyRegressor

    labels = read_rows(workspace.store, feature_set, "training")["label"].dropna()
    known = targets(declaration.task, labels, trained.classes)
    naive = DummyClassifier if declaration.task.classifies else DummyRegressor
    dummy = naive(strategy=declaration.baseline).fit(np.zeros((len(known), 1)), known)
    asked = np.zeros((rows, 1))
    return shaped(
        declaration.task,
        dummy.predict_proba(asked) if declaration.task.classifies else dummy.predict(asked),
    )


def _keep(
    declaration: Declaration,
    workspace: Workspace,
    asked: Mapping[str, str | None],
    holdout: _Holdout,
    answers: Mapping[str, Array],
) -> str:
    """Write every answer beside its label; the URI of the table."""
    rows = holdout.rows
    columns: dict[str, Any] = {
        "partition": rows["partition"],
        "row_id": rows["row_id"],
        "event_timestamp": rows["event_timestamp"],
        "label": holdout.labels,
    }
    for who, found in answers.items():
        several = found.ndim > 1
        columns |= {f"{who}_{k}": c for k, c in enumerate(found.T)} if several else {who: found}
    groups = [*declaration.evaluation.slices, *(rule.column for rule in declaration.gate.fairness)]
    columns |= {column: rows[column] for column in groups}
    key = digest_of({**asked, "holdout": holdout.digest, "columns": sorted(columns)})
    return workspace.store.put_table(f"tables/evaluation/{key}.parquet", rows[[]].assign(**columns))


def _slices(
    declaration: Declaration, holdout: _Holdout, answers: Mapping[str, Array]
) -> dict[str, dict[str, dict[str, float]]]:
    """Rows and metrics by each value of each declared column, where the rows define them."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for column in declaration.evaluation.slices:
        by_value = holdout.rows.groupby(column, observed=True, sort=True).indices
        found[column] = {
            str(value): _slice(
                declaration, holdout.labels[where], {w: a[where] for w, a in answers.items()}
            )
            for value, where in by_value.items()
        }
    return found


def _slice(
    declaration: Declaration, labels: Array, answers: Mapping[str, Array]
) -> dict[str, float]:
    measured = {"rows": float(len(labels))}
    with warnings.catch_warnings():  # scikit-learn's, about rows that don't define a metric
        warnings.simplefilter("ignore")
        for who, prefix in (("candidate", ""), ("champion", "champion.")):
            values = measure_all(declaration, labels, answers[who]) if who in answers else {}
            measured |= {f"{prefix}{name}": value for name, value in values.items()}
    return measured


def _importances(
    declaration: Declaration, models: Mapping[str, FittedModel], holdout: _Holdout
) -> dict[str, dict[str, float]]:
    """What the primary metric loses when a feature is shuffled (L. Breiman 2001), by model.

    Each model is asked for the same seeded sample of at most `SAMPLE` rows.
    """
    import numpy as np
    from sklearn.inspection import permutation_importance
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

    seed, metric = declaration.training.seed, declaration.primary
    sign = 1 if metric.greater_is_better else -1
    rows, labels = holdout.rows, holdout.labels
    size = min(SAMPLE, len(rows))
    drawn = np.sort(np.random.default_rng(seed).choice(len(rows), size=size, replace=False))

    def score(estimator: Any, frame: pd.DataFrame, truth: Array) -> float:
        ask = estimator.predict_proba if declaration.task.classifies else estimator.predict
        return sign * measure(
            metric, declaration.task, truth, shaped(declaration.task, ask(frame))
        )

    found = {}
    with threadpool_limits(1):  # thousands of small answers: threads would only wait for each other
        for who, model in models.items():
            frame = input_frame(rows.iloc[drawn], model.features).reset_index(drop=True)
            lost = permutation_importance(
                model.estimator,
                frame,
                labels[drawn],
                scoring=score,
                n_repeats=REPEATS,
                random_state=seed,
            ).importances_mean
            named = zip(frame.columns, lost, strict=True)
            found[who] = {name: float(value) for name, value in named if np.isfinite(value)}
    return found


def _change(importances: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    now, before = importances["candidate"], importances.get("champion", {})
    return {name: value - before[name] for name, value in now.items() if name in before}
