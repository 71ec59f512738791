"""What a version learned from, as profiles: computed once from its training rows, then read back.

Kept as two Parquet files named by the digests of what they were computed from: a seeded sample of
the rows, and every profile as rows of one table with the rest in its note. Two writers at once
write the same; the profiles' file comes last, so that where it stands all is there.

Longer than most: what is written stands beside how it is read back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from evergreen.declaration import Declaration, Task
from evergreen.errors import DeclarationError
from evergreen.lifecycle.categoryprofiles import KEPT, CategoryProfile
from evergreen.lifecycle.contracts import Evaluation, Feature, FeatureSet, Origin
from evergreen.lifecycle.distances import ColumnProfile, Distribution
from evergreen.lifecycle.numberprofiles import GRID, NumberProfile
from evergreen.lifecycle.sets import footer, put_table, read_rows
from evergreen.lifecycle.textdrift import TextProfile, drawn
from evergreen.store import Store, digest_of
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]

FORMAT = 1
"""Raised when the same rows give another profile; all are then computed anew."""
COARSE = 64
"""Points of a partition's grid, which is one for all partitions of a column."""
COARSE_KEPT = 256
SPANS = 120
"""Partitions that are profiled each alone; of more, neighbours are taken together."""

Spans = Mapping[str, Mapping[str, Distribution]]


@dataclass(frozen=True)
class ReferenceProfile:
    """What a version learned from and how it then answered.

    :ivar digest: of what it was computed from.
    :ivar rows: training rows.
    :ivar columns: feature → profile of its training rows.
    :ivar spans: partition, or ``first to last`` of neighbours where there are more than `SPANS`
        → feature → coarse profile; text has none. Oldest first.
    :ivar prediction: ``prediction``, or ``prediction_0``, … → profile of the version's answers
        for its holdout, which it hadn't learned from.
    :ivar confidence: their mean highest probability; None for regression.
    :ivar target: profile of the raw labels of training and holdout rows.
    :ivar importance: feature → share of the model's importance; they sum to 1.
    :ivar sample: a seeded sample of the training rows, features only.
    """

    digest: str
    rows: int
    columns: Mapping[str, ColumnProfile]
    spans: Spans
    prediction: Mapping[str, NumberProfile]
    confidence: float | None
    target: Distribution
    importance: Mapping[str, float]
    sample: pd.DataFrame


def reference_profile(
    declaration: Declaration, workspace: Workspace, origin: Origin
) -> ReferenceProfile:
    """The profile of a version, computed unless it is there.

    :raises DeclarationError: when ``monitoring.drift.text`` names a column of numbers.
    """
    store = workspace.store
    learned = FeatureSet.load(store, origin.features)
    kinds = {feature.name: kind_of(declaration, feature) for feature in learned.features}
    digest = digest_of(
        {
            "format": [FORMAT, GRID, KEPT, COARSE, COARSE_KEPT, SPANS],
            "origin": [origin.features.digest, origin.evaluation.digest],  # a refit changes neither
            "columns": kinds,
            "task": declaration.task,
            "sample": [declaration.monitoring.drift.sample, declaration.training.seed],
        }
    )
    name = f"tables/profiles/{declaration.name}/{digest[:32]}"
    if not store.exists(f"{name}.parquet"):
        made = _compute(declaration, store, origin, learned, kinds, digest)
        put_table(store, f"{name}-sample.parquet", made.sample, {"digest": digest})
        _write(store, f"{name}.parquet", made)
    return _read(store, name)


def kind_of(declaration: Declaration, feature: Feature) -> str:
    """How a feature is watched: ``number``, ``category`` or ``text``.

    :raises DeclarationError: when a column of numbers is declared to be text.
    """
    text = feature.name in declaration.monitoring.drift.text
    if text and feature.type == "number":
        raise DeclarationError(
            f"{declaration.name}: monitoring.drift.text names {feature.name}, which is a number; "
            "allowed are text features. Take it out of the list."
        )
    return "text" if text else "number" if feature.type == "number" else "category"


def confidence(task: Task, answers: Array) -> float | None:
    """The mean of each row's highest probability; None for values.

    :param answers: shaped as `evergreen.lifecycle.metrics` says.
    """
    import numpy as np

    if task is Task.REGRESSION or not len(answers):
        return None
    highest = answers.max(axis=1) if answers.ndim > 1 else np.maximum(answers, 1 - answers)
    return float(highest.mean())


def _compute(
    declaration: Declaration,
    store: Store,
    origin: Origin,
    learned: FeatureSet,
    kinds: Mapping[str, str],
    digest: str,
) -> ReferenceProfile:
    import pandas as pd

    rows = read_rows(store, learned, "training")
    holdout = read_rows(store, learned, "holdout")
    evaluation = Evaluation.load(store, origin.evaluation)
    answers = _answers(store.get_table(evaluation.predictions))
    sample = _sample(rows[list(kinds)], declaration)
    labels = pd.concat([rows["label"], holdout["label"]], ignore_index=True)
    columns = {name: _profile(rows[name], kind, sample[name]) for name, kind in kinds.items()}
    probabilities = answers.to_numpy("float64")
    return ReferenceProfile(
        digest=digest,
        rows=len(rows),
        columns=columns,
        spans=_spans(rows, columns),
        prediction={str(name): NumberProfile.of(values) for name, values in answers.items()},
        confidence=confidence(
            declaration.task, probabilities if len(answers.columns) > 1 else probabilities[:, 0]
        ),
        target=_watched(labels, "category" if declaration.task.classifies else "number"),
        importance=_importance(evaluation, kinds),
        sample=sample,
    )


def _answers(predictions: pd.DataFrame) -> pd.DataFrame:
    """The version's own answers for its holdout, named as in the prediction log."""
    if "candidate" in predictions.columns:
        return predictions[["candidate"]].rename(columns={"candidate": "prediction"})
    several = sum(f"candidate_{k}" in predictions.columns for k in range(predictions.shape[1]))
    return predictions[[f"candidate_{k}" for k in range(several)]].rename(
        columns={f"candidate_{k}": f"prediction_{k}" for k in range(several)}
    )


def _sample(rows: pd.DataFrame, declaration: Declaration) -> pd.DataFrame:
    import numpy as np

    size = declaration.monitoring.drift.sample
    if len(rows) <= size:
        return rows.reset_index(drop=True)
    rng = np.random.default_rng(declaration.training.seed)
    return rows.iloc[np.sort(rng.choice(len(rows), size=size, replace=False))].reset_index(
        drop=True
    )


def _profile(values: pd.Series, kind: str, sampled: pd.Series) -> ColumnProfile:
    if kind == "text":
        there = int(values.notna().sum())
        return TextProfile(_texts(sampled), there, len(values) - there)
    return _watched(values, kind)


def _watched(values: pd.Series, kind: str) -> Distribution:
    return NumberProfile.of(values) if kind == "number" else CategoryProfile.of(values)


def _texts(sampled: pd.Series) -> tuple[str, ...]:
    return drawn(sampled, len(sampled), 0)


def _importance(evaluation: Evaluation, features: Iterable[str]) -> dict[str, float]:
    """Losses below zero count as none; all alike where no feature matters."""
    lost = {name: max(evaluation.importance.get(name, 0.0), 0.0) for name in features}
    every = sum(lost.values())
    return {name: value / every if every else 1 / len(lost) for name, value in lost.items()}


def _spans(
    rows: pd.DataFrame, columns: Mapping[str, ColumnProfile]
) -> dict[str, dict[str, Distribution]]:
    """Each partition's coarse profiles; its numbers' grid is of the whole column's quantiles."""
    import numpy as np

    grids = {
        name: _coarse_grid(profile)
        for name, profile in columns.items()
        if isinstance(profile, NumberProfile)
    }
    categories = [name for name, p in columns.items() if isinstance(p, CategoryProfile)]
    keys = rows["partition"].drop_duplicates().tolist()  # rows are in the order of time
    found: dict[str, dict[str, Distribution]] = {}
    groups = rows.groupby("partition", sort=False).indices
    for together in np.array_split(np.arange(len(keys)), min(SPANS, len(keys))):
        named = [keys[place] for place in together]
        part = rows.iloc[np.concatenate([groups[key] for key in named])]
        name = named[0] if len(named) == 1 else f"{named[0]} to {named[-1]}"
        found[name] = {
            **{column: NumberProfile.of(part[column], grid) for column, grid in grids.items()},
            **{column: CategoryProfile.of(part[column], COARSE_KEPT) for column in categories},
        }
    return found


def _coarse_grid(profile: NumberProfile) -> Array:
    """Quantiles of a profile's own grid, closer towards the ends, as of that grid itself."""
    import numpy as np

    if len(profile.grid) <= COARSE:
        return profile.grid
    tail = np.geomspace(1 / profile.count, 0.5, COARSE // 4)
    even = np.linspace(0, 1, COARSE - 2 * (COARSE // 4))
    levels = np.concatenate(([0.0], tail, even, 1 - tail))
    places = np.searchsorted(profile.through, levels)
    grid: Array = profile.grid[np.unique(np.clip(places, 0, len(profile.grid) - 1))]
    return grid


def _write(store: Store, name: str, made: ReferenceProfile) -> None:
    import pandas as pd

    entries, tables = [], []
    for where, column, profile in _entries(made):
        facts, rows = _packed(profile)
        entries.append([*where, column, profile.kind, facts])
        tables.append(pd.DataFrame(rows).assign(entry=len(entries) - 1))
    every = pd.concat([table for table in tables if len(table)], ignore_index=True)
    note = {
        "digest": made.digest,
        "rows": made.rows,
        "confidence": made.confidence,
        "importance": made.importance,
        "entries": entries,
    }
    put_table(store, name, every[["entry", "value", "name", "at", "between", "total"]], note)


def _entries(made: ReferenceProfile) -> Iterator[tuple[tuple[str, str], str, ColumnProfile]]:
    for column, profile in made.columns.items():
        yield ("column", ""), column, profile
    for span, profiles in made.spans.items():
        for column, profile in profiles.items():
            yield ("span", span), column, profile
    for column, profile in made.prediction.items():
        yield ("prediction", ""), column, profile
    yield ("target", ""), "label", made.target


def _packed(profile: ColumnProfile) -> tuple[dict[str, Any], dict[str, Any]]:
    """A profile as plain facts and as rows of the table; a text's stand in the sample."""
    if isinstance(profile, NumberProfile):
        scalars = ("missing", "mean", "std", "low", "high")
        arrays = {"value": profile.grid, "at": profile.at, "between": profile.between}
        facts = {name: getattr(profile, name) for name in scalars}
        return facts, {**arrays, "total": profile.total, "name": ""}
    if isinstance(profile, CategoryProfile):
        facts = {name: getattr(profile, name) for name in ("missing", "rest", "rest_values")}
        counts = {"name": list(profile.counts), "at": list(profile.counts.values())}
        return facts, {**counts, "value": 0.0, "between": 0, "total": 0.0}
    return {"missing": profile.missing, "count": profile.count}, {}


def _unpacked(
    kind: str, facts: Mapping[str, Any], rows: Mapping[str, Array], sampled: pd.Series
) -> ColumnProfile:
    if kind == "number":
        return NumberProfile(rows["value"], rows["at"], rows["between"], rows["total"], **facts)
    if kind == "category":
        counts = dict(zip(rows["name"].tolist(), rows["at"].tolist(), strict=True))
        return CategoryProfile(counts=counts, **facts)
    return TextProfile(texts=_texts(sampled), **facts)


def _read(store: Store, name: str) -> ReferenceProfile:
    import numpy as np

    note = footer(store, f"{name}.parquet").note
    table = store.get_table(f"{name}.parquet")
    sample = store.get_table(f"{name}-sample.parquet")
    arrays = {str(column): values.to_numpy() for column, values in table.items()}
    bounds = np.searchsorted(arrays["entry"], np.arange(len(note["entries"]) + 1))
    found: dict[str, dict[str, dict[str, ColumnProfile]]] = {}
    for entry, (what, span, column, kind, facts) in enumerate(note["entries"]):
        own = slice(bounds[entry], bounds[entry + 1])
        rows = {column: values[own] for column, values in arrays.items()}
        profile = _unpacked(kind, facts, rows, sample.get(column))
        found.setdefault(what, {}).setdefault(span, {})[column] = profile
    return ReferenceProfile(
        digest=note["digest"],
        rows=note["rows"],
        columns=found["column"][""],
        spans=cast("Spans", found["span"]),
        prediction=cast("dict[str, NumberProfile]", found["prediction"][""]),
        confidence=note["confidence"],
        target=cast("Distribution", found["target"][""]["label"]),
        importance=note["importance"],
        sample=sample,
    )
