"""Score: the champion answers for whole partitions; its answers are the prediction log.

A partition is answered by the version that was live when it began, so a replay gives what a
live run would have given. The log is Hive-partitioned Parquet with one file a partition, which
a repeat replaces: ``predictions/model=<model>/partition=<key>/predictions.parquet``.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import DataBlockedError
from evergreen.ledger import records
from evergreen.ledger.tables import ScoreRow
from evergreen.lifecycle.contracts import (
    Champion,
    FeaturePart,
    FeatureSet,
    Partition,
    ScoredPartition,
    ScoreReport,
    Snapshot,
)
from evergreen.lifecycle.fitted import FittedModel, load_fitted, plain_name, targets
from evergreen.lifecycle.metrics import measure_all
from evergreen.lifecycle.sets import read_part
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]


def score(
    declaration: Declaration,
    workspace: Workspace,
    snapshot: Snapshot,
    feature_set: FeatureSet,
    *,
    run_id: str,
) -> ScoreReport:
    """Score every partition of the snapshot whose features could be prepared.

    :raises DataBlockedError: when a champion's feature is missing or its answers aren't finite.
    """
    parts = {part.partition: part for part in feature_set.parts}
    scored, skipped = [], {}
    for partition in snapshot.partitions:
        with workspace.ledger.read() as session:
            row = records.champion(session, declaration.name, partition.start)
        if partition.key not in parts:
            skipped[partition.key] = "its data is blocked; see the validation's report"
        elif row is None:
            skipped[partition.key] = f"no champion was live at {partition.start.isoformat()}"
        else:
            champion = Champion.from_row(row)
            done = _score(
                declaration, workspace, champion, partition, parts[partition.key], feature_set
            )
            _record(declaration, workspace, done, run_id)
            scored.append(done)
    return ScoreReport(model=declaration.name, scored=tuple(scored), skipped=skipped)


def answers_of(fitted: FittedModel, model: str, rows: pd.DataFrame) -> Array:
    """A fitted model's answers, shaped as `evergreen.lifecycle.metrics` says.

    :param rows: shape (n, …); holds at least the columns the model was fitted on.
    :raises DataBlockedError: when one of those is missing, or an answer is not finite.
    """
    import numpy as np

    missing = [f.name for f in fitted.features if f.name not in rows.columns]
    if missing:
        raise DataBlockedError(
            f"{model}: the champion needs {', '.join(missing)}, which the features don't have. "
            "Bring the feature back, or retrain: a new version learns without it."
        )
    answers = fitted.predict(rows)
    if not np.isfinite(answers).all():
        bad = int((~np.isfinite(answers)).reshape(len(rows), -1).any(axis=1).sum())
        raise DataBlockedError(f"{model}: {bad:,} of {len(rows):,} answers are not finite.")
    return answers


def unseen_categories(estimator: Any, rows: pd.DataFrame) -> dict[str, int]:
    """Rows per column whose category the fitted encoders never saw."""
    found = {}
    for column, known in _known_categories(estimator):
        values = rows[column]
        count = int((values.notna() & ~values.isin(known)).sum())
        if count:
            found[column] = count
    return found


def _known_categories(estimator: Any) -> Iterator[tuple[str, list[Any]]]:
    for _, step in getattr(estimator, "steps", []):
        for _, transformer, columns in getattr(step, "transformers_", []):
            last = getattr(transformer, "steps", [("", transformer)])[-1][1]
            categories = getattr(last, "categories_", None)
            if categories is not None:
                yield from (
                    (str(c), list(known)) for c, known in zip(columns, categories, strict=True)
                )


def _score(
    declaration: Declaration,
    workspace: Workspace,
    champion: Champion,
    partition: Partition,
    part: FeaturePart,
    feature_set: FeatureSet,
) -> ScoredPartition:
    fitted = load_fitted(workspace, declaration, champion.model_uri)
    rows = read_part(workspace.store, part, feature_set.as_of)
    answers = answers_of(fitted, declaration.name, rows)
    name = f"predictions/model={declaration.name}/partition={partition.key}/predictions.parquet"
    log = _log(declaration, champion, rows, answers, feature_set)
    uri = workspace.store.put_table(name, log)
    return ScoredPartition(
        partition=partition.key,
        revision=partition.revision,
        version=champion.version,
        rows=len(rows),
        uri=uri,
        digest=_digest(answers),
        unseen=unseen_categories(fitted.estimator, rows),
        metrics=realised(declaration, fitted, rows, answers, feature_set.as_of),
    )


def _log(
    declaration: Declaration,
    champion: Champion,
    rows: pd.DataFrame,
    answers: Array,
    feature_set: FeatureSet,
) -> pd.DataFrame:
    """Keys, the features as they were answered for, slices, the answer and who gave it."""
    keys = ["row_id", "event_timestamp", *declaration.data.entities]
    groups = (*declaration.evaluation.slices, *(rule.column for rule in declaration.gate.fairness))
    columns = dict.fromkeys([*keys, *(feature.name for feature in feature_set.features), *groups])
    log = rows[list(columns)].copy()
    if answers.ndim == 1:
        log["prediction"] = answers
    else:
        for k in range(answers.shape[1]):
            log[f"prediction_{k}"] = answers[:, k]
    log["model_version"] = champion.version
    return log


def realised(
    declaration: Declaration,
    fitted: FittedModel,
    rows: pd.DataFrame,
    answers: Array,
    as_of: datetime,
) -> dict[str, float]:
    """The metrics on rows whose label is known by ``as_of`` and of a class the model knows."""
    known = rows["label"].notna() & (rows["label_timestamp"] <= as_of)
    if declaration.task.classifies:
        known &= rows["label"].map(plain_name, na_action="ignore").isin(fitted.classes)
    if not known.any():
        return {}
    labels = targets(declaration.task, rows.loc[known, "label"], fitted.classes)
    return measure_all(declaration, labels, answers[known.to_numpy()])


def _digest(answers: Array) -> str:
    import hashlib

    return hashlib.sha256(answers.astype("<f8").tobytes()).hexdigest()


def _record(
    declaration: Declaration, workspace: Workspace, done: ScoredPartition, run_id: str
) -> None:
    with workspace.ledger.write() as session:
        row = ScoreRow(
            model=declaration.name,
            partition=done.partition,
            revision=done.revision,
            version=done.version,
            run_id=run_id,
            rows=done.rows,
            uri=done.uri,
            digest=done.digest,
            metrics=done.metrics,
        )
        records.put(session, row, "model", "partition", "revision", "version")
