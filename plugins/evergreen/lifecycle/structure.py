"""The checks of structure that every model's data must pass, without anybody declaring them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from evergreen.declaration import Declaration, Task
from evergreen.lifecycle.expectations import Finding, Severity, share
from evergreen.lifecycle.rows import LABELS, MAIN, labels_apart, required_columns

if TYPE_CHECKING:
    import pandas as pd


def structural_findings(
    declaration: Declaration, source: str, frame: pd.DataFrame, skipped: frozenset[str]
) -> Iterator[Finding]:
    """The checks that need no declaration of their own. ``skipped`` columns aren't looked at."""
    required = [c for c in required_columns(declaration, source) if c not in skipped]
    missing = [column for column in required if column not in frame]
    yield _listing("required columns", "block", missing, "missing", ", ".join(required))
    empty = [c for c in frame.columns[frame.isna().all()] if c not in skipped]
    needed, other = [c for c in empty if c in required], [c for c in empty if c not in required]
    yield _listing("required columns hold values", "block", needed, "all null", "not all null")
    yield _listing("other columns hold values", "warn", other, "all null", "not all null")
    apart = labels_apart(declaration)
    label = declaration.data.label.column if source == (LABELS if apart else MAIN) else None
    if source == MAIN:
        yield from _key_checks(declaration, frame)
        if apart:
            yield _no_label_here(declaration, frame)
    if label in frame and label not in skipped:
        yield from _label_values(declaration, frame[label])
    yield _infinities(frame.drop(columns=[label], errors="ignore"))


def _listing(name: str, severity: Severity, wrong: list[str], how: str, bound: str) -> Finding:
    observed = f"{how}: {', '.join(map(str, wrong))}" if wrong else f"none {how}"
    return Finding(name, severity, not wrong, observed, bound)


def _rows(name: str, wrong: pd.Series, detail: str = "") -> Finding:
    """A finding that sets the rows aside for which ``wrong`` holds."""
    rows = tuple(int(row) for row in wrong.index[wrong])
    observed = share(len(rows), len(wrong)) + (f": {detail}" if rows and detail else "")
    return Finding(name, "quarantine", not rows, observed, "0 rows", rows)


def _key_checks(declaration: Declaration, frame: pd.DataFrame) -> Iterator[Finding]:
    """Nobody is asked about, or asked about twice at the same moment, and the first one counts."""
    data = declaration.data
    keys = [column for column in (*data.entities, data.event_timestamp) if column in frame]
    nulls = frame[keys].isna()
    yield _rows("keys not null", nulls.any(axis=1), ", ".join(nulls.columns[nulls.any()]))
    if len(keys) <= len(data.entities):
        return
    whole = frame[~nulls.any(axis=1)]
    again = whole.duplicated(keys).reindex(frame.index, fill_value=False)
    twins = whole[whole.duplicated(keys, keep=False)]
    identical = twins.map(repr).duplicated().reindex(frame.index, fill_value=False)
    yield _rows("no repeated rows", again & identical, f"identical, {', '.join(keys)} included")
    yield _rows("keys unique", again & ~identical, f"same {', '.join(keys)}, other values")


def _no_label_here(declaration: Declaration, frame: pd.DataFrame) -> Finding:
    """A label that has its own table must not stand among the features too."""
    data = declaration.data
    ours = {data.event_timestamp, *data.entities, *data.label.key}
    named = {data.label.column, data.label.timestamp} - ours
    found = [str(column) for column in frame if column in named]
    observed = ", ".join(found) or "none"
    return Finding(
        "no label among the data", "block", not found, observed, f"only in {data.label.uri}"
    )


def label_key_findings(declaration: Declaration, frame: pd.DataFrame) -> Iterator[Finding]:
    """By ``label.key`` a label finds exactly one row; what has no whole key never gets one.

    :param frame: the rows of the model's own table that are not set aside.
    """
    keys = [column for column in declaration.data.label.key if column in frame]
    named = ", ".join(keys)
    whole = frame.dropna(subset=keys)
    without, doubled = len(frame) - len(whole), whole.duplicated(keys, keep=False)
    observed = share(int(doubled.sum()), len(frame))
    if doubled.any():
        observed += f", such as {whole.loc[doubled, keys].iloc[0].to_dict()}"
    yield Finding(
        "label keys unique", "block", not doubled.any(), observed, f"one row for each {named}"
    )
    yield Finding(
        "label keys not null", "warn", not without, share(without, len(frame)), f"a whole {named}"
    )


def _label_values(declaration: Declaration, label: pd.Series) -> Iterator[Finding]:
    import numpy as np
    from pandas.api.types import is_numeric_dtype

    if is_numeric_dtype(label):
        wrong = int(np.isinf(label.to_numpy(dtype=float, na_value=np.nan)).sum())
        observed = f"{label.name}: {share(wrong, len(label))} infinite"
        yield Finding("labels finite", "block", not wrong, observed, "0 rows")
    elif declaration.task is Task.REGRESSION:
        observed = f"{label.name} holds {label.dtype}"
        yield Finding("labels finite", "block", False, observed, "numbers")


def _infinities(frame: pd.DataFrame) -> Finding:
    import numpy as np
    import pandas as pd

    floats = frame[[c for c in frame if pd.api.types.is_float_dtype(frame[c])]]
    infinite = pd.DataFrame(
        np.isinf(floats.to_numpy(dtype=float, na_value=np.nan)), frame.index, floats.columns
    )
    where = ", ".join(infinite.columns[infinite.any()])
    return _rows("no infinite values", infinite.any(axis=1), where)
