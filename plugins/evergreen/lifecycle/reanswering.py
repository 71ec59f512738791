"""The former champion answers anew what the new version answered in production.

Rows are taken from the prediction log with the features as they were answered for, so both
answered the same, and what the former one would have done is computed, never remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration, Task
from evergreen.errors import TrainingError
from evergreen.ledger import records
from evergreen.ledger.tables import PromotionRow
from evergreen.lifecycle.contracts import FeatureSet, Interval, Origin
from evergreen.lifecycle.estimation import Holdout
from evergreen.lifecycle.fitted import FittedModel, load_fitted, plain_name, targets
from evergreen.lifecycle.intervals import Resampling, improvement
from evergreen.lifecycle.judging import clusters_of_times
from evergreen.lifecycle.metrics import measure_quietly
from evergreen.lifecycle.packaging import examples
from evergreen.lifecycle.servedlog import read_served
from evergreen.lifecycle.servers import SMOKE
from evergreen.lifecycle.sets import read_rows
from evergreen.lifecycle.watched import known_labels, logged_answers
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]

MOST = 50_000  # matured rows that are compared, the newest
LOGGED = 2_000  # logged requests that are answered anew


@dataclass(frozen=True)
class Matured:
    """What a version answered in production and whose labels are known.

    :ivar rows: of the prediction log, with ``label``; shape (n, …).
    :ivar labels: class indices or values, shape (n,); ``answers`` as in
        `evergreen.lifecycle.metrics`.
    """

    rows: pd.DataFrame
    labels: Array
    answers: Array


@dataclass(frozen=True)
class Compared:
    """A version beside another model on the same rows.

    :ivar against: who the other is, in words.
    :ivar value: the other's metric.
    :ivar better: the version's improvement over it; None where the rows don't define the metric.
    :ivar confidence: of its interval, two-sided.
    :ivar note: why it is not the former champion; None when it is.
    """

    against: str
    value: float
    better: Interval | None
    confidence: float
    note: str | None = None


def find_matured(
    declaration: Declaration,
    workspace: Workspace,
    live: PromotionRow,
    classes: tuple[str, ...],
    as_of: datetime,
) -> Matured:
    """The newest `MOST` rows that ``live`` answered since it went live, with labels known by then.

    Of partitions that began since: what the same version answered before it was replaced, and
    came back, is not looked at again. Labels of a class that it never saw don't count.
    """
    import pandas as pd

    frames, found = [], 0
    for part in _labelled(declaration, workspace, live, classes, as_of):
        frames.append(part)
        found += len(part)
        if found >= MOST:
            break
    if not frames:
        return Matured(pd.DataFrame({"label": []}), pd.Series(dtype=float).to_numpy(), _none())
    rows = pd.concat(frames[::-1], ignore_index=True)
    order = rows["event_timestamp"].argsort(kind="stable")
    rows = rows.iloc[order[-MOST:]].reset_index(drop=True)
    labels = targets(declaration.task, rows["label"], classes)
    return Matured(rows, labels, logged_answers(declaration, rows))


def compare(
    declaration: Declaration,
    workspace: Workspace,
    matured: Matured,
    holdout: Holdout,
    former: PromotionRow | None,
    confidence: float,
) -> Compared:
    """The version's improvement over the former champion on the same rows, and its interval.

    Where there is none, or it can't answer these rows, over the naive baseline of the evaluation
    that promoted the version. Resampled as the gate resamples, by sums over rows
    (`evergreen.lifecycle.intervals`), so that the cost doesn't grow with the metric.

    :param confidence: two-sided, of this look.
    """
    theirs, against, note = holdout.naive_answers(len(matured.labels)), "", None
    if former is not None:
        anew = answers_anew(declaration, workspace, former, matured.rows, holdout)
        if isinstance(anew, str):
            note = f"incomparable with the former champion {former.version}: {anew}"
        else:
            theirs, against = anew, f"the former champion {former.version}"
    clusters, _ = clusters_of_times(declaration, matured.rows["event_timestamp"])
    how = Resampling(declaration.gate.resamples, confidence, declaration.training.seed)
    metric = declaration.primary
    better = improvement(
        metric, declaration.task, matured.labels, matured.answers, theirs, how, clusters=clusters
    )
    value = measure_quietly(declaration, matured.labels, theirs).get(metric.name)
    return Compared(
        against=against or f"a naive model ({declaration.baseline})",
        value=0.0 if value is None else value,
        better=better if value is not None else None,
        confidence=confidence,
        note=note,
    )


def answers_anew(
    declaration: Declaration,
    workspace: Workspace,
    former: PromotionRow,
    rows: pd.DataFrame,
    holdout: Holdout,
) -> Array | str:
    """The former champion's answers to ``rows``; or why it has none.

    :param holdout: of the new version, whose classes the former must answer.
    """
    import numpy as np

    try:
        model = load_fitted(workspace, declaration, former.model_uri)
    except TrainingError as error:  # deleted since, or of a type that is no longer trusted
        return str(error)
    if missing := [f.name for f in model.features if f.name not in rows.columns]:
        return f"it needs {', '.join(missing)}, which the prediction log doesn't have"
    classes = holdout.evaluation.classes
    if (model.task, model.classes) != (declaration.task, classes):
        return (
            f"it answers {model.task} {', '.join(model.classes)}; the new version answers "
            f"{declaration.task} {', '.join(classes)}"
        )
    try:
        answers = model.predict(rows)
    except (ValueError, TypeError, ArithmeticError) as error:  # of columns that changed since
        return f"{type(error).__name__}: {error}"
    return answers if np.isfinite(answers).all() else "it answers NaN or infinity for some rows"


def logged_pair(
    declaration: Declaration,
    workspace: Workspace,
    live: PromotionRow,
    former: PromotionRow,
    holdout: Holdout,
    since: datetime,
) -> tuple[Array, Array] | str:
    """Both models' answers to the newest `LOGGED` requests since ``since``, the new version's
    first as it answered them; or why there are none. Smoke requests are left out."""
    rows = read_served(declaration, workspace, version=live.version, roles=("champion",))
    if not len(rows):
        return "no logged answers yet"
    own = rows["request_id"].astype(str).str.startswith(SMOKE)
    rows = rows[(rows["served_at"] >= since) & ~own]
    rows = rows.sort_values(["served_at", "request_id", "request_row"], kind="stable")
    rows = rows.tail(LOGGED).reset_index(drop=True)
    if not len(rows):
        return f"no logged answers since {since.isoformat()}"
    old = answers_anew(declaration, workspace, former, rows, holdout)
    return old if isinstance(old, str) else (logged_answers(declaration, rows), old)


def holdout_pair(
    declaration: Declaration, workspace: Workspace, former: PromotionRow, holdout: Holdout
) -> tuple[Array, Array] | None:
    """Both models' answers to the new version's holdout: as the evaluation that promoted it has
    them, or anew where that compared it with another champion. None when the former has none."""
    evaluation = holdout.evaluation
    if evaluation.champion_version == former.version and not evaluation.champion_problem:
        table = workspace.store.get_table(evaluation.predictions)
        several = declaration.task is Task.MULTICLASS
        names = (
            [f"champion_{k}" for k in range(len(evaluation.classes))] if several else ["champion"]
        )
        old = table[names].to_numpy("float64")
        return holdout.answers, old if several else old[:, 0]
    features = holdout.features(workspace.store)
    anew = answers_anew(declaration, workspace, former, features, holdout)
    return None if isinstance(anew, str) else (holdout.answers, anew)


def example_rows(
    declaration: Declaration, workspace: Workspace, live: PromotionRow
) -> tuple[FittedModel, pd.DataFrame]:
    """The live model, and rows to ask it: the examples it was logged with, else of its holdout.

    :raises TrainingError: when the model can't be read, or there is no row to ask it.
    """
    import pandas as pd

    model, kept = load_with_examples(workspace, declaration, live.model_uri)
    if kept:
        return model, pd.DataFrame(kept)
    if not live.origin:
        raise TrainingError(
            f"{declaration.name}: version {live.version} was logged without example rows, and the "
            "ledger doesn't say what it was made from: nothing can be asked of it. Retrain."
        )
    origin = Origin.model_validate(live.origin)
    feature_set = FeatureSet.load(workspace.store, origin.features)
    rows = read_rows(workspace.store, feature_set, "holdout")
    return model, pd.DataFrame(examples(rows, model.features))


def load_with_examples(
    workspace: Workspace, declaration: Declaration, uri: str
) -> tuple[FittedModel, list[dict[str, Any]]]:
    """A logged model, and the example rows it carries; none for one of before they were kept."""
    from evergreen.lifecycle.fitted import METADATA
    from evergreen.lifecycle.registry import logged_metadata, model_folder

    with model_folder(workspace, uri) as folder:
        known = (logged_metadata(folder).metadata or {}).get(METADATA, {})
    return load_fitted(workspace, declaration, uri), list(known.get("examples", ()))


def _labelled(
    declaration: Declaration,
    workspace: Workspace,
    live: PromotionRow,
    classes: tuple[str, ...],
    as_of: datetime,
) -> Iterator[pd.DataFrame]:
    """Each partition's rows with a known label, the newest partition first."""
    with workspace.ledger.read() as session:
        latest = {row.partition: row for row in records.scores(session, declaration.name)}
        known = records.labels_known(session, declaration.name)
    start = declaration.data.partition.start
    for key in sorted(latest, key=start, reverse=True):
        score, label = latest[key], known.get((key, live.version))
        if score.version != live.version or start(key) < live.as_of or label is None:
            continue
        if label.revision != score.revision:  # a label finds its answer by its place in the file
            continue
        log = workspace.store.get_table(score.uri)
        log = log[log["model_version"].astype(str) == live.version]
        labels = known_labels(workspace.store.get_table(label.uri), as_of)
        if declaration.task.classifies:
            ours = [v for v in labels["label"].unique().tolist() if plain_name(v) in classes]
            labels = labels[labels["label"].isin(ours)]
        rows = log.merge(labels[["row_id", "label"]], on="row_id", validate="1:1")
        if len(rows):
            yield rows


def _none() -> Array:
    import numpy as np

    return np.empty(0)
