"""Detect drift: are a window's inputs and answers still like what its version learned from?

A column drifts by its distance, or by values that are missing or were never learned. The columns
count by their importance for the model, so that one it hardly looks at raises no alarm. And a
window that looks like some partition of the training window is recurring, not drifted: what a
model has learned it need not learn again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from evergreen.declaration import Declaration
from evergreen.declaration.watching import P_VALUES
from evergreen.lifecycle.categoryprofiles import Categories
from evergreen.lifecycle.contracts import (
    ColumnDrift,
    DriftReport,
    LabelReport,
    Origin,
    Window,
    WindowDrift,
)
from evergreen.lifecycle.distances import Distribution, compare_column, judge, method_of
from evergreen.lifecycle.driftreport import write_page
from evergreen.lifecycle.numberprofiles import Numbers
from evergreen.lifecycle.profiles import ReferenceProfile, confidence, reference_profile
from evergreen.lifecycle.watched import logged_answers, read_window
from evergreen.store import digest_of
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

#: What stands for a test where one partition is looked at: a p-value of few rows says little.
_DISTANCE_OF = {"ks": "wasserstein", "chisquare": "jensenshannon"}


def detect_drift(
    declaration: Declaration, workspace: Workspace, report: LabelReport
) -> DriftReport:
    """Compare every fresh window with what the version that answered it learned from.

    :raises DeclarationError: for a declared method that isn't for a column's kind.
    """
    return DriftReport(
        model=declaration.name,
        as_of=report.as_of,
        sequence=report.sequence,
        windows=tuple(
            _window(declaration, workspace, report, window)
            for window in report.windows
            if window.fresh
        ),
    )


def _window(
    declaration: Declaration, workspace: Workspace, report: LabelReport, window: Window
) -> WindowDrift:
    rows = sum(part.rows for part in report.partitions if part.partition in window.partitions)
    least, origin = declaration.monitoring.min_rows, report.origins.get(window.version)
    if origin is None:
        why = (
            f"the ledger doesn't say what version {window.version} learned from; the next "
            "promoted version is watched"
        )
    elif rows < least:
        why = f"{rows:,} rows are fewer than monitoring.min_rows: {least:,}"
    else:
        return _compared(declaration, workspace, report, window, origin)
    return WindowDrift(
        window=window.key, version=window.version, rows=rows, reference="", skipped=why
    )


def _compared(
    declaration: Declaration,
    workspace: Workspace,
    report: LabelReport,
    window: Window,
    origin: Origin,
) -> WindowDrift:
    drift, seed = declaration.monitoring.drift, declaration.training.seed
    reference = reference_profile(declaration, workspace, origin)
    ignored = {name for name, column in drift.columns.items() if column.ignore}
    watched = [name for name in reference.columns if name not in ignored]
    columns_read = [*watched, *reference.prediction]
    rows = read_window(workspace.store, report, window, columns_read, labels=False)
    columns = {
        name: compare_column(
            declaration, name, reference.columns[name], rows[name], reference.importance[name]
        )
        for name in watched
    }
    share = weight(columns)
    beyond = share >= drift.share and any(column.drifted for column in columns.values())
    prediction = tuple(
        compare_column(declaration, name, profile, rows[name])
        for name, profile in reference.prediction.items()
        if name not in ignored
    )
    nearest, nearest_share = None, None
    if beyond and drift.recurring:
        nearest, nearest_share = _nearest(declaration, reference, rows, columns)
    recurs = nearest_share is not None and nearest_share < drift.share
    apart = any(column.drifted for column in prediction)
    violated = {"inputs": beyond and not recurs, "prediction": apart}
    answered = [part for part in report.partitions if part.partition in window.partitions]
    made = write_page(
        declaration,
        workspace.store,
        reference,
        rows[watched],
        digest_of([[p.partition, p.revision, p.version, p.predictions] for p in answered]),
    )
    sampled = {"report": made.rows} if made.uri else {}
    for column in (c for c in columns.values() if c.kind == "text"):
        there = int(rows[column.column].notna().sum())
        sampled[column.column] = min(there, drift.sample)
    return WindowDrift(
        window=window.key,
        version=window.version,
        rows=len(rows),
        reference=reference.digest,
        columns=tuple(columns.values()),
        share=share,
        share_bound=drift.share,
        nearest=nearest,
        nearest_share=nearest_share,
        prediction=prediction,
        confidence=confidence(declaration.task, logged_answers(declaration, rows)),
        confidence_reference=reference.confidence,
        violates=tuple(name for name, it in violated.items() if it and name in drift.on),
        sampled=sampled,
        seed=seed,
        report=made.uri,
        left_out=made.left_out,
    )


def weight(columns: Mapping[str, ColumnDrift]) -> float:
    """The importance of the drifted columns together, a share of 1; nine digits, so that all of
    three thirds are no less than a bound of 1."""
    return min(1.0, round(sum(c.importance for c in columns.values() if c.drifted), 9))


def _nearest(
    declaration: Declaration,
    reference: ReferenceProfile,
    rows: pd.DataFrame,
    columns: Mapping[str, ColumnDrift],
) -> tuple[str | None, float | None]:
    """The partition against which least drifts, and the drifted columns' share of importance.

    Of several with the same share the one at the least distance, in units of the thresholds. Text
    isn't profiled by partition: against each it counts as against all.
    """
    found: dict[str, dict[str, ColumnDrift]] = {span: {} for span in reference.spans}
    for name, whole in columns.items():
        now = _now(reference, name, rows)
        for span, profiles in reference.spans.items():
            found[span][name] = (
                whole
                if now is None
                else _alone(declaration, name, profiles[name], now, whole.importance)
            )
    if not found:
        return None, None

    def apart(span: str) -> tuple[float, float]:
        far = sum(c.importance * c.distance / (c.threshold or 1.0) for c in found[span].values())
        return weight(found[span]), far

    nearest = min(found, key=apart)
    return nearest, weight(found[nearest])


def _now(reference: ReferenceProfile, name: str, rows: pd.DataFrame) -> Numbers | Categories | None:
    kind = reference.columns[name].kind
    if kind == "text":
        return None
    return Numbers.of(rows[name]) if kind == "number" else Categories.of(rows[name])


def _alone(
    declaration: Declaration,
    name: str,
    profile: Distribution,
    now: Numbers | Categories,
    importance: float,
) -> ColumnDrift:
    """A column against one partition; by a distance where a test is declared."""
    drift, method = declaration.monitoring.drift, method_of(declaration, name, profile.kind)
    threshold = drift.threshold(method, name)
    if method in P_VALUES:
        method = _DISTANCE_OF[method]
        threshold = drift.threshold(method)
    return judge(declaration, name, profile, now, method, threshold, importance)
