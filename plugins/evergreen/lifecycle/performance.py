"""Measure: how the version that answered a window did, as far as labels are known.

Realised on matured rows and estimated on all, side by side, with intervals; by slice; the labels
against those learned from; the stream of errors (`evergreen.lifecycle.concept`). Whether it has
become too bad is judged in `evergreen.lifecycle.judging`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.lifecycle.concept import Concept, Yardstick, watch
from evergreen.lifecycle.contracts import (
    ColumnDrift,
    DetectorState,
    Interval,
    LabelReport,
    PerformanceReport,
    Window,
    WindowPerformance,
)
from evergreen.lifecycle.estimation import Estimate, Holdout, estimate
from evergreen.lifecycle.fitted import plain_name, targets
from evergreen.lifecycle.intervals import Resampling, interval, mean_interval
from evergreen.lifecycle.judging import Seen, clusters_of_times, judge, watched_metric
from evergreen.lifecycle.metrics import calibration, measure_all, row_losses
from evergreen.lifecycle.watched import logged_answers, read_window
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]

RESAMPLES = 2_000  # a window is measured many times; a gate may ask for more
SLICE_RESAMPLES = 400
NO_ORIGIN = (
    "it was promoted before what a version was judged by was kept: there is nothing to compare "
    "with; the next version has it"
)


def measure_performance(
    declaration: Declaration,
    workspace: Workspace,
    report: LabelReport,
    detectors: Mapping[str, DetectorState],
) -> PerformanceReport:
    """Measure every window whose labels changed, or that nobody has measured.

    :param detectors: the concept-drift detectors of each version after the last monitoring.
    :raises CorruptError: when a kept state or evaluation isn't what was written.
    """
    windows = [window for window in report.windows if window.learned or window.fresh]
    holdouts = {
        version: Holdout.load(declaration, workspace.store, report.origins[version])
        for version in sorted({window.version for window in windows} & set(report.origins))
    }
    concepts = {
        version: _concept(declaration, workspace, report, version, holdout, detectors)
        for version, holdout in holdouts.items()
    }
    states = {**detectors, **{v: c.state for v, c in concepts.items() if c is not None}}
    newest = {window.version: window.key for window in windows}
    measured = []
    for window in windows:
        if window.version not in holdouts:
            measured.append(_unmeasured(declaration, workspace, report, window))
            continue
        concept, state = concepts[window.version], states.get(window.version)
        found = _measure(declaration, workspace, report, window, holdouts[window.version])
        found = _with_concept(declaration, window, found, state)
        if concept is not None and newest[window.version] == window.key:
            found = found.model_copy(update={"notes": (*found.notes, *concept.notes)})
        measured.append(found)
    return PerformanceReport(
        model=report.model,
        as_of=report.as_of,
        sequence=report.sequence,
        windows=tuple(measured),
        detections=tuple(d for c in concepts.values() if c is not None for d in c.detections),
        detectors=states,
    )


def _concept(
    declaration: Declaration,
    workspace: Workspace,
    report: LabelReport,
    version: str,
    holdout: Holdout,
    detectors: Mapping[str, DetectorState],
) -> Concept | None:
    classes = holdout.evaluation.classes
    yardstick = Yardstick.of(declaration.task, holdout.labels, holdout.answers, classes)
    return watch(declaration, workspace.store, report, version, yardstick, detectors.get(version))


def _with_concept(
    declaration: Declaration, window: Window, found: WindowPerformance, state: DetectorState | None
) -> WindowPerformance:
    """The window violates while the error is up: those since it rose, also measured again."""
    if (
        state is None
        or state.worse_since is None
        or "concept" not in declaration.monitoring.drift.on
    ):
        return found
    since = declaration.data.partition.start(state.worse_since)
    if window.end <= since:
        return found
    told = f"concept: the error rose in {state.worse_since} and has not fallen since"
    return found.model_copy(
        update={"violates": (*found.violates, "concept"), "notes": (*found.notes, told)}
    )


def _unmeasured(
    declaration: Declaration, workspace: Workspace, report: LabelReport, window: Window
) -> WindowPerformance:
    rows = read_window(workspace.store, report, window, ())
    return WindowPerformance(
        window=window.key,
        version=window.version,
        rows=len(rows),
        matured=int(rows["label"].notna().sum()),
        metric=watched_metric(declaration).name,
        skipped=f"version {window.version}: {NO_ORIGIN}",
    )


def _measure(
    declaration: Declaration,
    workspace: Workspace,
    report: LabelReport,
    window: Window,
    holdout: Holdout,
) -> WindowPerformance:
    seen = _see(declaration, read_window(workspace.store, report, window), holdout)
    how = _how(declaration)
    realised = _realised(declaration, seen, how)
    estimated = Estimate()
    if declaration.monitoring.estimate and len(seen.rows):
        estimated = estimate(
            declaration, workspace.store, holdout, seen.rows, seen.answers, how,
            clusters=seen.clusters,
        )  # fmt: skip
    judged = judge(declaration, seen, holdout, realised, estimated, how)
    target = (
        _target(declaration, workspace, report, window, seen)
        if judged.basis == "realised"
        else None
    )
    naive = holdout.naive_answers(len(seen.labels))
    slices, slice_rows = _slices(declaration, seen, how)
    any_label = len(seen.labels) > 0
    violates = ["performance"] if judged.violated else []
    if target is not None and target.drifted and "target" in declaration.monitoring.drift.on:
        violates.append("target")
    return WindowPerformance(
        window=window.key,
        version=window.version,
        rows=len(seen.rows),
        matured=seen.matured,
        realised=realised,
        estimated=estimated.metrics,
        reference=holdout.shown(declaration),
        naive=_quietly(declaration, seen.labels, naive) if any_label else {},
        slices=slices,
        slice_rows=slice_rows,
        calibration=calibration(declaration.task, seen.labels, seen.given) if any_label else {},
        calibration_reference=holdout.evaluation.calibration,
        target=target,
        metric=watched_metric(declaration).name,
        bound=judged.bound,
        basis=judged.basis,
        violates=tuple(violates),
        because=judged.because,
        unseen=seen.matured - len(seen.labels),
        notes=(*seen.notes, *(f"not estimated: {why}" for why in estimated.missing)),
        skipped=judged.skipped,
    )


def _how(declaration: Declaration, most: int = RESAMPLES) -> Resampling:
    gate = declaration.gate
    return Resampling(min(gate.resamples, most), gate.confidence, declaration.training.seed)


def _see(declaration: Declaration, rows: pd.DataFrame, holdout: Holdout) -> Seen:
    import numpy as np

    known, notes = rows["label"].notna(), []
    classes = holdout.evaluation.classes
    if declaration.task.classifies:
        named = rows["label"].map(plain_name, na_action="ignore").isin(classes)
        if unseen := int((known & ~named).sum()):
            notes.append(
                f"{unseen:,} labels are of a class that the version never saw: in no metric"
            )
        known &= named
    measured = np.flatnonzero(known.to_numpy())
    labels = rows["label"].iloc[measured]
    indices = targets(declaration.task, labels, classes) if len(labels) else np.empty(0)
    clusters, coarse = clusters_of_times(declaration, rows["event_timestamp"])
    return Seen(
        rows=rows,
        answers=logged_answers(declaration, rows),
        measured=measured,
        labels=indices,
        clusters=clusters,
        notes=(*notes, *coarse),
    )


def _realised(declaration: Declaration, seen: Seen, how: Resampling) -> dict[str, Interval]:
    if not len(seen.labels):
        return {}
    clusters = seen.clusters_of(seen.measured)
    found = {
        name: interval(
            declaration.metric(name), declaration.task, seen.labels, seen.given, how,
            clusters=clusters,
        )
        for name in declaration.metrics
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _quietly(declaration: Declaration, labels: Array, answers: Array) -> dict[str, float]:
    import warnings

    with warnings.catch_warnings():  # scikit-learn's, about rows that don't define a metric
        warnings.simplefilter("ignore")
        return measure_all(declaration, labels, answers)


def _slices(
    declaration: Declaration, seen: Seen, how: Resampling
) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, int]]]:
    """The primary metric by slice: a mean over rows has its normal interval, which costs
    nothing; other metrics are resampled, a few hundred times."""
    import numpy as np

    found: dict[str, dict[str, Interval]] = {}
    counts: dict[str, dict[str, int]] = {}
    few = Resampling(min(how.resamples, SLICE_RESAMPLES), how.confidence, how.seed)
    for column in declaration.evaluation.slices:
        values = seen.rows[column].iloc[seen.measured].reset_index(drop=True)
        for value, where in values.groupby(values, observed=True).indices.items():
            if len(where) < declaration.evaluation.min_slice_rows:
                continue
            measured = _slice(declaration, seen, np.asarray(where), few)
            if measured is not None:
                found.setdefault(column, {})[str(value)] = measured
                counts.setdefault(column, {})[str(value)] = len(where)
    return found, counts


def _slice(declaration: Declaration, seen: Seen, where: Array, how: Resampling) -> Interval | None:
    metric, task = declaration.primary, declaration.task
    labels, given = seen.labels[where], seen.given[where]
    clusters = seen.clusters_of(seen.measured[where])
    losses = row_losses(metric, task, labels, given)
    if losses is not None:
        return mean_interval(losses, how.confidence, clusters)
    return interval(metric, task, labels, given, how, clusters=clusters)


def _target(
    declaration: Declaration, workspace: Workspace, report: LabelReport, window: Window, seen: Seen
) -> ColumnDrift:
    """The window's labels beside those that the version learned from."""
    from evergreen.lifecycle.distances import compare_column
    from evergreen.lifecycle.profiles import reference_profile

    profile = reference_profile(declaration, workspace, report.origins[window.version])
    known = seen.rows["label"].dropna()
    return compare_column(declaration, declaration.data.label.column, profile.target, known)
