"""Search for parameters: successive halving over time-ordered folds, once, then reused.

Many candidates start on few rows, the better third goes on with three times as many (K. Jamieson
and A. Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016).
What was found is kept in the store under the digest of the question (model, estimator, search, metric)
and answers it until it is asked to be searched anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError, TrainingError
from evergreen.lifecycle import tracking
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.estimators import build_estimator, wants_indices
from evergreen.lifecycle.fitted import FittedModel
from evergreen.lifecycle.metrics import measure
from evergreen.store import digest_of
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Lesson:
    """What an estimator learns from.

    :ivar rows: feature columns, in order of event time.
    :ivar targets: class indices, or values; shape (n,).
    :ivar values: the classes' values, in order; none for regression.
    """

    declaration: Declaration
    features: tuple[Feature, ...]
    rows: pd.DataFrame
    targets: Array
    values: tuple[Any, ...]

    def fit(
        self,
        parameters: Mapping[str, Any],
        rows: pd.DataFrame | None = None,
        targets: Array | None = None,
    ) -> FittedModel:
        """Fit an estimator with these parameters, on these rows or on all.

        Classes are learned by their own values, so that the served model speaks of them; XGBoost
        only learns indices.
        """
        import numpy as np

        rows = self.rows if rows is None else rows
        targets = self.targets if targets is None else targets
        estimator = build_estimator(self.declaration, self.features, parameters)
        if self.values and not wants_indices(estimator):
            targets = np.asarray(self.values)[targets]
        estimator.fit(rows, targets)
        names = tuple(str(value) for value in self.values)
        return FittedModel(estimator, self.declaration.task, self.features, names)


def best_parameters(
    workspace: Workspace, lesson: Lesson, *, run_id: str, run_key: str, as_of: datetime, tune: bool
) -> dict[str, Any]:
    """The parameters that a declared search found: the kept ones, or with ``tune`` new ones.

    Every candidate becomes a child of the MLflow run, found again by its key.

    :raises DeclarationError: for a parameter that the estimator doesn't take, or a KPI that can't
        be used.
    :raises TrainingError: when no candidate could be fitted and scored.
    """
    declaration, primary = lesson.declaration, lesson.declaration.primary
    question = {
        "model": declaration.name,
        "estimator": declaration.training.estimator,
        "search": declaration.model_dump(mode="json")["training"]["search"],
        "primary": [primary.name, primary.function, primary.greater_is_better],
    }
    name = f"documents/search/{digest_of(question)}.json"
    if workspace.store.exists(name) and not tune:
        kept: dict[str, Any] = json.loads(workspace.store.read_bytes(name))
        return dict(kept["parameters"])
    results = _search(lesson)
    found: dict[str, Any] = results["parameters"]
    _log_trials(
        workspace, declaration, results["trials"], run_id=run_id, run_key=run_key, as_of=as_of
    )
    answer = {"question": question, "parameters": found, "score": results["score"], "run": run_key}
    workspace.store.put_bytes(name, json.dumps(answer, sort_keys=True, indent=1).encode())
    return found


def _search(lesson: Lesson) -> dict[str, Any]:
    import numpy as np
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - switches it on
    from sklearn.model_selection import (
        HalvingGridSearchCV,
        HalvingRandomSearchCV,
        ParameterGrid,
        TimeSeriesSplit,
    )

    search = lesson.declaration.training.search
    assert search is not None  # noqa: S101 - asked only when one is declared
    space = search.parameters
    build_estimator(lesson.declaration, lesson.features, next(iter(ParameterGrid(space))))
    common = {
        "factor": search.factor,
        "cv": TimeSeriesSplit(search.folds),
        "scoring": _scorer(lesson),
        "random_state": lesson.declaration.training.seed,
        "refit": False,
        "error_score": np.nan,
    }
    recipe = _recipe(lesson)
    halving = (
        HalvingGridSearchCV(recipe, {"parameters": list(ParameterGrid(space))}, **common)
        if len(ParameterGrid(space)) <= search.candidates
        else HalvingRandomSearchCV(
            recipe,
            {"parameters": list(ParameterGrid(space))},
            n_candidates=search.candidates,
            **common,
        )
    )
    try:
        halving.fit(lesson.rows, lesson.targets)
    except _KpiError as error:
        raise error.problem from error
    found = halving.cv_results_
    scores = found["mean_test_score"]
    if not np.isfinite(scores[halving.best_index_]):
        raise TrainingError(
            f"{lesson.declaration.name}: no candidate of training.search could be fitted and scored "
            f"on {len(lesson.rows):,} rows in {search.folds} folds; try fewer folds or other values"
        )
    sign = 1 if lesson.declaration.primary.greater_is_better else -1
    trials = [
        {
            "parameters": p["parameters"],
            "iteration": int(i),
            "rows": int(n),
            "score": sign * float(s),
        }
        for p, i, n, s in zip(
            found["params"], found["iter"], found["n_resources"], scores, strict=True
        )
    ]
    best = int(halving.best_index_)
    return {
        "parameters": trials[best]["parameters"],
        "score": trials[best]["score"],
        "trials": trials,
    }


def _scorer(lesson: Lesson) -> Any:
    """The primary metric, greater is better; NaN where a fold doesn't know every class."""
    metric, task = lesson.declaration.primary, lesson.declaration.task
    sign = 1 if metric.greater_is_better else -1

    def score(recipe: Any, rows: pd.DataFrame, targets: Array) -> float:
        model = recipe.model_
        if task.classifies and len(model.estimator.classes_) < len(lesson.values):
            return float("nan")
        answers = model.predict(rows)
        try:
            return sign * measure(metric, task, targets, answers)
        except DeclarationError as error:
            raise _KpiError(error) from error

    return score


class _KpiError(BaseException):
    """A model's KPI can't be used. The search takes any Exception for one candidate's failure and
    goes on to the next; this ends it."""

    def __init__(self, problem: DeclarationError) -> None:
        super().__init__(str(problem))
        self.problem = problem


def _recipe(lesson: Lesson) -> Any:
    """The lesson as an estimator whose one parameter is the parameters, for the search to vary."""
    from sklearn.base import BaseEstimator

    class Recipe(BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
        def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
            self.parameters = parameters

        def fit(self, rows: pd.DataFrame, targets: Array) -> Recipe:
            self.model_ = lesson.fit(self.parameters or {}, rows, targets)
            return self

    return Recipe()


def _log_trials(
    workspace: Workspace,
    declaration: Declaration,
    trials: list[dict[str, Any]],
    *,
    run_id: str,
    run_key: str,
    as_of: datetime,
) -> None:
    """One child run for each candidate, with its last and largest trial."""
    last = {digest_of(trial["parameters"]): trial for trial in trials}
    there = tracking.children(workspace, declaration, run_id)
    for digest, trial in last.items():
        key = f"{run_key}/trial/{digest[:16]}"
        child = there.get(key) or tracking.find_or_create_run(
            workspace, declaration, key, {"evergreen.model": declaration.name}, parent=run_id
        )
        tracking.log_params(workspace, child, trial["parameters"])
        measured = {name: trial[name] for name in ("iteration", "rows")}
        measured[declaration.primary.name] = trial["score"]
        tracking.log_metrics(workspace, child, measured, as_of)
        tracking.finish_run(workspace, child)
