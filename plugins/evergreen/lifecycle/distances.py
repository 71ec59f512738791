"""Has a column drifted? Its values beside its profile, by the declared method and bounds.

A column drifts by its distance, by values that are missing, or by values never learned; each
reason is said with its number and its bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, get_args

from evergreen.declaration import Declaration
from evergreen.declaration.watching import P_VALUES, CategoryMethod, Drift, NumberMethod
from evergreen.errors import DeclarationError
from evergreen.lifecycle.categoryprofiles import Categories, CategoryProfile
from evergreen.lifecycle.contracts import ColumnDrift
from evergreen.lifecycle.numberprofiles import NumberProfile, Numbers
from evergreen.lifecycle.textdrift import TextProfile, drawn, separation

if TYPE_CHECKING:
    import pandas as pd

Distribution = NumberProfile | CategoryProfile
ColumnProfile = Distribution | TextProfile

CHANCE = 0.01
"""A distance that chance alone would exceed more often than this is no drift: of 200 rows of 20
categories two windows in three are 0.1 apart (Jensen-Shannon) though nothing has changed."""


def compare_column(
    declaration: Declaration,
    column: str,
    profile: ColumnProfile,
    values: pd.Series,
    importance: float = 0.0,
) -> ColumnDrift:
    """A column's values beside its profile, by the declared method, threshold and bounds.

    :param column: its name, also in ``monitoring.drift.columns``; the label's column for labels.
    :raises DeclarationError: for a declared method that isn't for this kind of column.
    """
    if isinstance(profile, TextProfile):
        return _compare_text(declaration, column, profile, values, importance)
    method = method_of(declaration, column, profile.kind)
    threshold = declaration.monitoring.drift.threshold(method, column)
    if isinstance(profile, NumberProfile):
        numbers = Numbers.of(values)
        return judge(declaration, column, profile, numbers, method, threshold, importance)
    categories = Categories.of(values)
    return judge(declaration, column, profile, categories, method, threshold, importance)


def judge(
    declaration: Declaration,
    column: str,
    profile: Distribution,
    now: Numbers | Categories,
    method: str,
    threshold: float,
    importance: float = 0.0,
) -> ColumnDrift:
    """As `compare_column`, by a method and threshold of the caller's."""
    drift = declaration.monitoring.drift
    outside = new = None
    named: tuple[str, ...] = ()
    if isinstance(profile, NumberProfile) and isinstance(now, Numbers):
        distance, there = profile.distance(method, now), len(now.values)
        outside = profile.outside(now)
    elif isinstance(profile, CategoryProfile) and isinstance(now, Categories):
        distance, there = profile.distance(method, now), sum(now.counts.values())
        new, named = profile.unlearned(now)
    else:
        raise TypeError(f"column {column}: {type(now).__name__} beside a {profile.kind} profile")
    missing, before = _absent(now.missing, there), _absent(profile.missing, profile.count)
    because = (
        *_far(method, distance, threshold, _chance(profile, now)),
        *_lacking(drift, missing, before),
        *_beyond(drift, profile, outside),
        *_strange(drift, new, named),
    )
    return ColumnDrift(
        column=column,
        kind=profile.kind,
        method=method,
        distance=distance,
        threshold=threshold,
        drifted=bool(because),
        missing=missing,
        missing_reference=before,
        out_of_range=outside,
        new_categories=new,
        importance=importance,
        because=because,
    )


def method_of(declaration: Declaration, column: str, kind: str) -> str:
    """The declared method for a column.

    :raises DeclarationError: when it isn't for this kind of column.
    """
    drift = declaration.monitoring.drift
    default, allowed = {
        "number": (drift.numeric, get_args(NumberMethod)),
        "category": (drift.categorical, get_args(CategoryMethod)),
        "text": ("domain_classifier", ("domain_classifier",)),
    }[kind]
    own = drift.columns[column].method if column in drift.columns else None
    if own is not None and own not in allowed:
        raise DeclarationError(
            f"{declaration.name}: monitoring.drift.columns.{column}: {own} is not for a {kind} "
            f"column; allowed: {', '.join(allowed)}"
        )
    return own or default


def _compare_text(
    declaration: Declaration,
    column: str,
    profile: TextProfile,
    values: pd.Series,
    importance: float,
) -> ColumnDrift:
    """A column's texts beside the learned ones, on a seeded sample of each side."""
    drift, seed = declaration.monitoring.drift, declaration.training.seed
    method = method_of(declaration, column, "text")
    threshold = drift.threshold(method, column)
    auc = separation(profile.texts, drawn(values, drift.sample, seed), seed)
    there = int(values.notna().sum())
    missing, before = _absent(len(values) - there, there), _absent(profile.missing, profile.count)
    far = (f"{method} ROC AUC {auc:.3f} (bound: {threshold:g})",) if auc > threshold else ()
    because = (*far, *_lacking(drift, missing, before))
    return ColumnDrift(
        column=column,
        kind="text",
        method=method,
        distance=auc,
        threshold=threshold,
        drifted=bool(because),
        missing=missing,
        missing_reference=before,
        importance=importance,
        because=because,
    )


def _absent(missing: int, there: int) -> float:
    """The share of rows without a value."""
    return missing / (missing + there) if missing else 0.0


def _lacking(drift: Drift, missing: float, before: float) -> Iterable[str]:
    """Whether missing values rose too far; a column that is gone has drifted by any bound."""
    if missing - before > drift.missing or (missing == 1.0 > before):
        yield f"missing in {missing:.1%} of rows, {before:.1%} learned (may rise by {drift.missing:.0%})"


def _chance(profile: Distribution, now: Numbers | Categories) -> float:
    """How often so few rows would lie so far apart if nothing had changed: a test's p-value."""
    if isinstance(profile, NumberProfile) and isinstance(now, Numbers):
        return profile.distance("ks", now)
    if isinstance(profile, CategoryProfile) and isinstance(now, Categories):
        return profile.distance("chisquare", now)
    return 0.0


def _far(method: str, distance: float, threshold: float, chance: float) -> Iterable[str]:
    """A distance counts when it is no accident of few rows; in many rows it hardly ever is."""
    if method in P_VALUES:
        if distance < threshold:
            yield f"{method} p-value {distance:.3g} (bound: {threshold:g})"
    elif distance >= threshold and chance < CHANCE:
        yield f"{method} {distance:.3f} (bound: {threshold:g})"


def _beyond(drift: Drift, profile: Distribution, outside: float | None) -> Iterable[str]:
    if outside is not None and outside > drift.out_of_range:
        bound = f"(bound: {drift.out_of_range:.0%})"
        if isinstance(profile, NumberProfile) and profile.count:
            yield f"{outside:.1%} of rows beyond the learned {profile.low:g} to {profile.high:g} {bound}"
        else:
            yield f"{outside:.1%} of rows have a number, and none was learned {bound}"


def _strange(drift: Drift, new: float | None, named: Sequence[str]) -> Iterable[str]:
    if new is not None and new > drift.new_categories:
        such = f" such as {', '.join(named)}" if named else ""
        yield f"{new:.1%} of rows in categories never learned{such} (bound: {drift.new_categories:.0%})"
