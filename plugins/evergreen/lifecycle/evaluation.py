"""Evaluate: candidate, champion and a naive baseline answer the same rows, anew each time.

Beside them stands what the champion answered to these rows in production, where it was asked.
Nothing here judges; it measures, and keeps every answer so that the gate can resample them. A
champion that can't answer these rows is a finding with a reason, not a failure.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import UnavailableError
from evergreen.lifecycle import plots, tracking
from evergreen.lifecycle.contracts import Evaluation, FeatureSet, TrainedModel
from evergreen.lifecycle.fitted import FittedModel, load_fitted, shaped, targets
from evergreen.lifecycle.importance import importances, less
from evergreen.lifecycle.metrics import calibration, measure_all, measure_quietly
from evergreen.lifecycle.production import Asked, Production, find_production
from evergreen.lifecycle.sets import read_rows
from evergreen.store import digest_of
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]


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

    What the champion answered in production is looked up by the run's first attempt; a repeat
    finds the same, though the log goes on.

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
    lost = importances(declaration, models, rows, holdout.labels)
    asked = {"candidate": trained.model_uri, "champion": champion and champion[1]}
    production = None
    if champion and not problem:  # its classes are known to be the candidate's
        looked = {**asked, "run": trained.mlflow_run, "version": champion[0]}
        looked |= {"holdout": holdout.digest, "as_of": as_of.isoformat()}
        whose = Asked(champion[0], trained.classes, as_of)
        production = find_production(
            declaration, workspace, feature_set, rows, whose, key=digest_of(looked)
        )
    result = Evaluation(
        model=declaration.name,
        mlflow_run=trained.mlflow_run,
        holdout_digest=holdout.digest,
        holdout_rows=len(rows),
        champion_version=champion[0] if champion else None,
        champion_problem=problem,
        classes=trained.classes,
        predictions=_keep(declaration, workspace, asked, holdout, answers, production),
        metrics={
            **{who: measure_all(declaration, holdout.labels, a) for who, a in answers.items()},
            **_paired(declaration, holdout, answers, production),
        },
        slices=_slices(declaration, holdout, answers),
        calibration=calibration(declaration.task, holdout.labels, answers["candidate"]),
        importance=lost["candidate"],
        importance_change=less(lost["candidate"], lost.get("champion", {})),
        **_told(production, answers),
    )
    measured = {f"{who}.{k}": v for who, found in result.metrics.items() for k, v in found.items()}
    measured |= {f"candidate.{name}": value for name, value in result.calibration.items()}
    measured |= {f"realised.{name}": value for name, value in result.realised.items()}
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


def _paired(
    declaration: Declaration,
    holdout: _Holdout,
    answers: Mapping[str, Array],
    production: Production | None,
) -> dict[str, dict[str, float]]:
    """The metrics of the logged answers, and the candidate's on the same rows."""
    if production is None or not production.finite:
        return {}
    where = production.asked
    both = {
        "production": production.answers,
        "candidate_where_production": answers["candidate"][where],
    }
    labels = holdout.labels[where]
    return {who: measure_quietly(declaration, labels, found) for who, found in both.items()}


def _told(production: Production | None, answers: Mapping[str, Array]) -> dict[str, Any]:
    """What the evaluation says of production."""
    if production is None:
        return {}
    return {
        "production_rows": int(production.asked.sum()),
        "production_differs": production.differs(answers["champion"]),
        "production_problem": production.problem,
        "production_notes": production.notes,
        "realised": production.realised,
        "realised_rows": production.realised_rows,
    }


def _keep(
    declaration: Declaration,
    workspace: Workspace,
    asked: Mapping[str, str | None],
    holdout: _Holdout,
    answers: Mapping[str, Array],
    production: Production | None,
) -> str:
    """Write every answer beside its label; the URI of the table."""
    rows = holdout.rows
    columns: dict[str, Any] = {
        "partition": rows["partition"],
        "row_id": rows["row_id"],
        "event_timestamp": rows["event_timestamp"],
        "label": holdout.labels,
    }
    logged = {"production": _spread(production)} if production and len(production.answers) else {}
    for who, found in {**answers, **logged}.items():
        several = found.ndim > 1
        columns |= {f"{who}_{k}": c for k, c in enumerate(found.T)} if several else {who: found}
    groups = [*declaration.evaluation.slices, *(rule.column for rule in declaration.gate.fairness)]
    columns |= {column: rows[column] for column in groups}
    known = {who: hashlib.sha256(found.tobytes()).hexdigest() for who, found in logged.items()}
    key = digest_of({**asked, **known, "holdout": holdout.digest, "columns": sorted(columns)})
    return workspace.store.put_table(f"tables/evaluation/{key}.parquet", rows[[]].assign(**columns))


def _spread(production: Production) -> Array:
    """The logged answers at their rows, missing elsewhere; shape (n,) or (n, k)."""
    import numpy as np

    found = np.full((len(production.asked), *production.answers.shape[1:]), np.nan)
    found[production.asked] = production.answers
    return found


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
    for who, prefix in (("candidate", ""), ("champion", "champion.")):
        values = measure_quietly(declaration, labels, answers[who]) if who in answers else {}
        measured |= {f"{prefix}{name}": value for name, value in values.items()}
    return measured
