"""Evidently's picture of a window beside what was learned, on a seeded sample of each side.

It gets the methods and thresholds that our own figures are by, so that both speak of the same
things; the figures that count are ours, on all rows. A page is written once for the same rows.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.lifecycle.distances import method_of
from evergreen.lifecycle.numberprofiles import LARGEST
from evergreen.lifecycle.profiles import ReferenceProfile
from evergreen.store import Store, digest_of

if TYPE_CHECKING:
    import pandas as pd

    Sides = tuple[pd.DataFrame, pd.DataFrame]

FORMAT = 1
"""Raised when the same rows give another page."""
SHOWN = 200
"""Categories that a page tells apart: Evidently takes ten seconds for some thousands."""
BINS = 100
OTHERS = "(other categories)"


@dataclass(frozen=True)
class DriftPage:
    """Where the page is, how many of the window's rows it shows, and which columns it can't."""

    uri: str | None
    rows: int
    left_out: tuple[str, ...] = ()


def write_page(
    declaration: Declaration,
    store: Store,
    reference: ReferenceProfile,
    rows: pd.DataFrame,
    rows_digest: str,
) -> DriftPage:
    """Write the page unless it is there.

    Left out are columns without any value on one side, numbers so large that floats have no room
    for a histogram, both of which Evidently refuses, and text, which it would judge otherwise.

    :param rows: the window's, with the columns to show.
    :param rows_digest: says which rows these are.
    """
    drift, seed = declaration.monitoring.drift, declaration.training.seed
    kinds = {str(name): reference.columns[str(name)].kind for name in rows.columns}
    current = _drawn(rows, drift.sample, seed)
    sides = {
        name: pair
        for name, kind in kinds.items()
        if (pair := _shown(kind, reference.sample[name], current[name])) is not None
    }
    left_out = tuple(name for name in kinds if name not in sides)
    if not sides:
        return DriftPage(None, 0, left_out)
    methods = {name: method_of(declaration, name, kinds[name]) for name in sides}
    options = {
        "columns": list(sides),
        "per_column_method": methods,
        "per_column_threshold": {n: drift.threshold(m, n) for n, m in methods.items()},
        "drift_share": drift.share,
    }
    digest = digest_of([FORMAT, rows_digest, reference.digest, options, len(current), seed])
    name = f"reports/drift/{digest}.html"
    if not store.exists(name):
        store.put_bytes(name, _page(kinds, sides, options).encode())
    return DriftPage(store.uri(name), len(current), left_out)


def _drawn(rows: pd.DataFrame, size: int, seed: int) -> pd.DataFrame:
    import numpy as np

    if len(rows) <= size:
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), size=size, replace=False)
    return rows.iloc[np.sort(chosen)]


def _shown(kind: str, learned: pd.Series, current: pd.Series) -> tuple[pd.Series, pd.Series] | None:
    """Both sides of a column as Evidently can show them, or None."""
    import numpy as np

    if kind == "number":
        infinite = [np.inf, -np.inf]
        learned, current = (
            side.astype("float64").replace(infinite, np.nan).clip(-LARGEST, LARGEST)
            for side in (learned, current)
        )
        return (learned, current) if _has_bins(learned, current) else None
    if kind == "text" or not (learned.notna().any() and current.notna().any()):
        return None
    known = learned.value_counts().index[:SHOWN]
    fits = len({*known, *current.dropna().unique()}) <= SHOWN
    return (learned, current) if fits else (_grouped(learned, known), _grouped(current, known))


def _has_bins(*sides: pd.Series) -> bool:
    """Whether floats have room for a histogram of each side, as NumPy demands; of equal values it
    takes the unit around them."""
    import numpy as np

    if not all(side.notna().any() for side in sides):
        return False
    finest = np.spacing(max(float(side.abs().max()) for side in sides))
    spans = [float(side.max() - side.min()) or 1.0 for side in sides]
    return bool(min(spans) > BINS * finest)


def _grouped(values: pd.Series, known: pd.Index) -> pd.Series:
    return values.where(values.isin(known) | values.isna(), OTHERS)


def _page(
    kinds: Mapping[str, str],
    sides: Mapping[str, tuple[pd.Series, pd.Series]],
    options: Mapping[str, Any],
) -> str:
    """Evidently's standalone HTML. Nothing is sent anywhere, nor loaded by who opens it."""
    os.environ.setdefault("DO_NOT_TRACK", "true")
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(
        numerical_columns=[name for name in sides if kinds[name] == "number"],
        categorical_columns=[name for name in sides if kinds[name] == "category"],
    )
    learned, current = (
        Dataset.from_pandas(
            pd.DataFrame({name: pair[side].reset_index(drop=True) for name, pair in sides.items()}),
            data_definition=definition,
        )
        for side in (0, 1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, column by column, of NaN in what it plots
        snapshot = Report([DataDriftPreset(**options, include_tests=False)]).run(current, learned)
        return str(snapshot.get_html_str(as_iframe=False))
