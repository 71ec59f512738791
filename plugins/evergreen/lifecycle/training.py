"""Train: fit the declared estimator once for a run's key, log it, and say exactly what it is.

A run killed at any point goes on in the same MLflow run: the chosen parameters, the logged model
and at last the result are written there as they are reached. Fitting again gives the same trees,
so a logged model is known by the digest of its answers for the holdout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import TrainingError
from evergreen.lifecycle import tracking
from evergreen.lifecycle.contracts import FeatureSet, Reference, TrainedModel
from evergreen.lifecycle.fitted import (
    FittedModel,
    class_values,
    digest_of_predictions,
    input_frame,
    targets,
)
from evergreen.lifecycle.modules import code_digest
from evergreen.lifecycle.packaging import environment_digest, package
from evergreen.lifecycle.sets import read_rows
from evergreen.lifecycle.tuning import Lesson, best_parameters
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

RESULT = "evergreen.result"
RESULT_OF_REFIT = "evergreen.result.refit"
PARAMETERS = "evergreen.parameters"
DIGEST = "evergreen.predictions_digest"


@dataclass(frozen=True)
class _Attempt:
    """One of perhaps several attempts at a run.

    :ivar tags: the run's, as an attempt before left them.
    """

    declaration: Declaration
    workspace: Workspace
    feature_set: FeatureSet
    run_id: str
    run_key: str
    as_of: datetime
    tags: Mapping[str, str]

    def result(self, tag: str) -> TrainedModel | None:
        """What an attempt before has finished; one killed right after that left the run open."""
        if tag not in self.tags:
            return None
        tracking.finish_run(self.workspace, self.run_id)
        return TrainedModel.load(self.workspace.store, json.loads(self.tags[tag]))

    def keep(self, result: TrainedModel, tag: str) -> TrainedModel:
        """Save the result, mark the run with it, end the run."""
        reference = json.dumps(result.save(self.workspace.store).to_dict())
        tracking.set_tags(self.workspace, self.run_id, {tag: reference})
        tracking.finish_run(self.workspace, self.run_id)
        return result


def train(
    declaration: Declaration,
    workspace: Workspace,
    feature_set: FeatureSet,
    reference: Reference,
    snapshot_digest: str,
    *,
    run_key: str,
    as_of: datetime,
    cause: str | None,
    tune: bool = False,
    lineage: Mapping[str, str],
) -> TrainedModel:
    """Fit a candidate on the training rows and log it.

    :param reference: of the feature set, as it was saved.
    :param run_key: names the run; the same key gives the same result, however often.
    :param tune: search the declared space anew instead of reusing what was found before.
    :param lineage: further tags, like ``git_commit``, ``dag_id``, ``dag_run``, ``bundle_version``.
    :raises DeclarationError: when the estimator can't be built.
    :raises TrainingError: when it can't be fitted, can't answer, or can't be logged under
        trusted types.
    """
    code, environment = code_digest(declaration), environment_digest()
    facts = {
        **lineage,
        "cause": cause or "",
        "model": declaration.name,
        "data_digest": snapshot_digest,
        "features_digest": reference.digest,
        "code_digest": code,
        "environment_digest": environment,
        "as_of": as_of.isoformat(),
        "refit": "false",
    }
    tags = {f"evergreen.{name}": value for name, value in facts.items()}
    run_id = tracking.find_or_create_run(workspace, declaration, run_key, tags)
    attempt = _Attempt(
        declaration,
        workspace,
        feature_set,
        run_id=run_id,
        run_key=run_key,
        as_of=as_of,
        tags=tracking.tags_of(workspace, run_id),
    )
    if done := attempt.result(RESULT):
        return done
    if feature_set.training_end is None or feature_set.holdout_start is None:
        raise TrainingError(
            f"{declaration.name}: the feature set was prepared for scoring, not for training"
        )
    lesson = _lesson(declaration, feature_set, read_rows(workspace.store, feature_set, "training"))
    parameters = _parameters(attempt, lesson, tune=tune)
    estimator = declaration.training.estimator
    tracking.log_params(workspace, run_id, {"estimator": estimator, **parameters})
    model = _fit(attempt, lesson, parameters, "fit_seconds")
    uri, predictions = _log(attempt, model, "model", lesson.rows)
    result = TrainedModel(
        model=declaration.name,
        mlflow_run=run_id,
        model_uri=uri,
        estimator=estimator,
        experiment=workspace.experiment(declaration),
        features=feature_set.features,
        classes=model.classes,
        feature_set=reference,
        snapshot=snapshot_digest,
        predictions_digest=predictions,
        code_digest=code,
        environment_digest=environment,
        parameters=parameters,
        training_rows=len(lesson.rows),
        holdout_start=feature_set.holdout_start,
        trained_through=feature_set.training_end,
        tuned=declaration.training.search is not None,
    )
    return attempt.keep(result, RESULT)


def refit(
    declaration: Declaration,
    workspace: Workspace,
    feature_set: FeatureSet,
    trained: TrainedModel,
    *,
    run_key: str,
    as_of: datetime,
) -> TrainedModel:
    """Fit a candidate that has passed the gate again, on its window and its holdout.

    The same recipe in the candidate's own run, as a second logged model ``model-refit``.

    :raises TrainingError: when ``run_key`` isn't the candidate's, and as `train` does.
    """
    import pandas as pd

    attempt = _Attempt(
        declaration,
        workspace,
        feature_set,
        run_id=trained.mlflow_run,
        run_key=run_key,
        as_of=as_of,
        tags=tracking.tags_of(workspace, trained.mlflow_run),
    )
    if (key := attempt.tags.get(tracking.RUN_KEY)) != run_key:
        raise TrainingError(f"the MLflow run {trained.mlflow_run} is of {key}, not of {run_key}")
    if done := attempt.result(RESULT_OF_REFIT):
        return done
    judged = [read_rows(workspace.store, feature_set, w) for w in ("training", "holdout")]
    lesson = _lesson(declaration, feature_set, pd.concat(judged, ignore_index=True))
    model = _fit(attempt, lesson, trained.parameters, "refit_seconds")
    uri, predictions = _log(attempt, model, "model-refit", lesson.rows)
    tracking.set_tags(workspace, trained.mlflow_run, {"evergreen.refit": "true"})
    changed = {
        "model_uri": uri,
        "predictions_digest": predictions,
        "training_rows": len(lesson.rows),
        "classes": model.classes,
        "trained_through": max(part.end for part in feature_set.parts),
        "refit": True,
    }
    return attempt.keep(trained.model_copy(update=changed), RESULT_OF_REFIT)


def _lesson(declaration: Declaration, feature_set: FeatureSet, rows: pd.DataFrame) -> Lesson:
    """Labelled rows as an estimator learns from them.

    :raises TrainingError: when there is none, or they are all of one class.
    """
    rows = rows[rows["label"].notna()]
    if rows.empty:
        raise TrainingError(f"{declaration.name}: no labelled row to learn from")
    values = class_values(rows["label"]) if declaration.task.classifies else []
    if len(values) == 1:
        raise TrainingError(
            f"{declaration.name}: all {len(rows):,} training rows are of one class, {values[0]}; "
            "there is nothing to tell apart. Widen training.window or check the label."
        )
    return Lesson(
        declaration=declaration,
        features=feature_set.features,
        rows=input_frame(rows, feature_set.features),
        targets=targets(declaration.task, rows["label"], values),
        values=tuple(values),
    )


def _parameters(attempt: _Attempt, lesson: Lesson, *, tune: bool) -> dict[str, Any]:
    """The run's parameters: what an attempt before chose, or declared ones and searched ones."""
    if PARAMETERS in attempt.tags:
        return dict(json.loads(attempt.tags[PARAMETERS]))
    chosen = dict(lesson.declaration.training.parameters)
    if lesson.declaration.training.search:
        chosen |= best_parameters(
            attempt.workspace,
            lesson,
            run_id=attempt.run_id,
            run_key=attempt.run_key,
            as_of=attempt.as_of,
            tune=tune,
        )
    note = {PARAMETERS: json.dumps(chosen, sort_keys=True)}
    tracking.set_tags(attempt.workspace, attempt.run_id, note)
    return chosen


def _fit(
    attempt: _Attempt, lesson: Lesson, parameters: Mapping[str, Any], metric: str
) -> FittedModel:
    """Fit, and log how long the first attempt took: a measurement, so not part of the result."""
    began = perf_counter()
    try:
        model = lesson.fit(parameters)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise TrainingError(
            f"{lesson.declaration.name}: {lesson.declaration.training.estimator} can't be fitted "
            f"on {len(lesson.rows):,} rows: {type(error).__name__}: {error}"
        ) from error
    seconds = {metric: perf_counter() - began}
    if metric not in tracking.metrics_of(attempt.workspace, attempt.run_id):
        tracking.log_metrics(attempt.workspace, attempt.run_id, seconds, attempt.as_of)
    return model


def _log(attempt: _Attempt, model: FittedModel, name: str, rows: pd.DataFrame) -> tuple[str, str]:
    """Log the model, unless an attempt before did.

    :param rows: what it was fitted on; a few are logged with it, to warm a server up.
    :returns: its URI, and the digest of its answers for the holdout.
    """
    import numpy as np

    declaration, workspace, run_id = attempt.declaration, attempt.workspace, attempt.run_id
    predictions = model.predict(read_rows(workspace.store, attempt.feature_set, "holdout"))
    if not np.isfinite(predictions).all():
        raise TrainingError(
            f"{declaration.name}: the model answers the holdout with NaN or infinity"
        )
    digest = digest_of_predictions(predictions)
    if logged := tracking.find_logged_model(workspace, run_id, name):
        if logged.tags.get(DIGEST) == digest:
            return f"models:/{logged.model_id}", digest
        tracking.delete_logged_model(workspace, logged.model_id)
    tags = {DIGEST: digest, "evergreen.model": declaration.name}
    saved = package(declaration, model, rows)
    return tracking.log_model(workspace, run_id, name, model.estimator, tags=tags, **saved), digest
