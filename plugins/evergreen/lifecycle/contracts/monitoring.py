"""What is known of a model at work: matured labels, drift, performance, the signals they raise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import AwareDatetime

from evergreen.lifecycle.contracts.base import Contract, Reference, Result


class LabelsKnown(Contract):
    """A table of labels (``row_id``, ``label``, ``label_timestamp``), and as of when it was read."""

    uri: str
    as_of: AwareDatetime


class WatchedPartition(Contract):
    """A scored partition, and what is known of its labels.

    ``predictions`` is its part of the prediction log. ``labels`` holds a label for every row that
    has one, also one that becomes known later: who reads compares ``label_timestamp`` with the
    moment; ``pending`` of them are known later. ``before`` is what the last monitoring had known.
    """

    partition: str
    revision: int
    version: str
    start: AwareDatetime
    end: AwareDatetime
    predictions: str
    labels: str
    rows: int
    matured: int
    pending: int = 0
    before: LabelsKnown | None = None


class Window(Contract):
    """Partitions that are measured together, named by the newest; one version answered them all.

    ``fresh``: nobody has looked for drift in it. ``learned``: labels became known, or changed,
    since its performance was measured.
    """

    key: str
    version: str
    partitions: tuple[str, ...]
    start: AwareDatetime
    end: AwareDatetime
    fresh: bool
    learned: bool


class Origin(Contract):
    """What a version was made from and judged by: references of the run that promoted it."""

    version: str
    trained: Reference
    features: Reference
    evaluation: Reference


class LabelReport(Result):
    """The prediction log beside the labels known by ``as_of``, and what is to be measured."""

    kind = "labels"
    as_of: AwareDatetime
    sequence: int
    live: str | None = None
    partitions: tuple[WatchedPartition, ...] = ()
    windows: tuple[Window, ...] = ()
    origins: dict[str, Origin] = {}

    def describe(self) -> Iterator[str]:
        yield f"as of {self.as_of.isoformat()}, partitions through sequence {self.sequence}"
        if self.live is None:
            yield "no version is live: nothing to watch yet"
        for part in self.partitions:
            share = f"{part.matured / part.rows:.0%}" if part.rows else "none"
            yield (
                f"{part.partition}: {part.rows:,} predictions by version {part.version}, "
                f"{part.matured:,} labels known ({share})"
            )
        fresh = [window.key for window in self.windows if window.fresh]
        learned = [window.key for window in self.windows if window.learned]
        yield f"to look for drift in: {', '.join(fresh) or 'nothing new'}"
        yield f"to measure: {', '.join(learned) or 'no new labels'}"


class ColumnDrift(Contract):
    """One column now, beside its reference. Rates and importance are shares of 1.

    ``distance`` is in the method's unit; for a test's p-value smaller is further, so ``drifted``
    says it. ``because`` names what made the column count as drifted.
    """

    column: str
    kind: Literal["number", "category", "text"]
    method: str
    distance: float
    threshold: float
    drifted: bool
    missing: float = 0.0
    missing_reference: float = 0.0
    out_of_range: float | None = None
    new_categories: float | None = None
    importance: float = 0.0
    because: tuple[str, ...] = ()


class WindowDrift(Contract):
    """How far a window's inputs and predictions are from what its version learned from.

    ``share`` is the importance-weighted share of drifted columns; ``nearest`` the partition of
    the training window that looks most like this window, and ``nearest_share`` the share of
    drifted columns against that one alone. ``violates`` may hold ``inputs`` and ``prediction``.
    ``sampled`` says for what (``report``, a text column) how many rows were drawn, with ``seed``;
    ``left_out`` names the columns that the report can't show.
    """

    window: str
    version: str
    rows: int
    reference: str
    columns: tuple[ColumnDrift, ...] = ()
    share: float = 0.0
    share_bound: float = 1.0
    nearest: str | None = None
    nearest_share: float | None = None
    prediction: tuple[ColumnDrift, ...] = ()
    confidence: float | None = None
    confidence_reference: float | None = None
    violates: tuple[str, ...] = ()
    sampled: dict[str, int] = {}
    seed: int = 0
    report: str | None = None
    left_out: tuple[str, ...] = ()
    skipped: str | None = None

    def lines(self) -> Iterator[str]:
        """The window in a task's log."""
        if self.skipped:
            yield f"{self.window}: not measured: {self.skipped}"
            return
        drifted = [c for c in self.columns if c.drifted]
        yield (
            f"{self.window}: {self.rows:,} rows against version {self.version}'s training window "
            f"({self.reference[:12]})"
        )
        nearest = (
            f"; most like {self.nearest}, of which {self.nearest_share:.0%} drifted"
            if self.nearest is not None and self.nearest_share is not None
            else ""
        )
        yield (
            f"  inputs: {len(drifted)} of {len(self.columns)} columns drifted, "
            f"{self.share:.0%} by importance (bound: {self.share_bound:.0%}){nearest}"
        )
        for c in sorted(drifted, key=lambda c: -c.importance)[:10]:
            yield f"    {c.column}: {'; '.join(c.because)} (importance {c.importance:.0%})"
        for c in self.prediction:
            yield f"  {c.column}: {c.method} {c.distance:.3f} (bound: {c.threshold:g})" + (
                " DRIFTED" if c.drifted else ""
            )
        if self.confidence is not None and self.confidence_reference is not None:
            yield f"  confidence: {self.confidence:.3f}, at promotion {self.confidence_reference:.3f}"
        for what, rows in self.sampled.items():
            yield f"  sampled for {what}: {rows:,} rows, seed {self.seed}"
        yield f"  violates: {', '.join(self.violates) or 'nothing'}"
        if self.report:
            without = f" (without {', '.join(self.left_out)})" if self.left_out else ""
            yield f"  report: {self.report}{without}"


class DriftReport(Result):
    """Drift, window by window."""

    kind = "drift"
    as_of: AwareDatetime
    sequence: int
    windows: tuple[WindowDrift, ...] = ()

    def describe(self) -> Iterator[str]:
        if not self.windows:
            yield "no new predictions to look for drift in"
        for window in self.windows:
            yield from window.lines()


class Interval(Contract):
    """A value and its interval, in the metric's unit."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


class Detection(Contract):
    """A change that a detector saw in the stream of labelled errors.

    ``window`` is the partition of the row at which it was seen, ``at`` when that row's label
    became known. ``before`` and ``after`` are mean errors: log loss, absolute error, or (``ddm``)
    the share of wrong classes.
    """

    detector: str
    version: str = ""
    window: str
    at: AwareDatetime
    before: float
    after: float
    worse: bool


class DetectorState(Contract):
    """Concept-drift detectors after ``rows`` labelled errors of one version.

    ``worse_since`` is the partition in which the error was seen to rise, until it falls.
    """

    version: str
    uri: str
    sha256: str
    rows: int
    worse_since: str | None = None


class WindowPerformance(Contract):
    """How a version did in a window: estimated from its own answers, realised on matured labels.

    ``reference`` is what the version showed on its holdout when it was promoted; ``naive`` what
    a model that knows only the reference's labels would have shown on the same matured rows.
    ``slices[column][value]`` is the primary metric with its interval; ``slice_rows`` alike.
    ``violates`` may hold ``performance``, ``target`` and ``concept``; ``basis`` says on what the
    first rests. ``unseen`` of the matured rows have a class that the version never saw: no metric
    counts them. ``notes`` say how numbers came about, and why some are missing.
    """

    window: str
    version: str
    rows: int
    matured: int
    realised: dict[str, Interval] = {}
    estimated: dict[str, Interval] = {}
    reference: dict[str, float] = {}
    naive: dict[str, float] = {}
    slices: dict[str, dict[str, Interval]] = {}
    slice_rows: dict[str, dict[str, int]] = {}
    calibration: dict[str, float] = {}
    calibration_reference: dict[str, float] = {}
    target: ColumnDrift | None = None
    metric: str
    bound: float | None = None
    basis: Literal["realised", "estimated", "nothing"] = "nothing"
    violates: tuple[str, ...] = ()
    because: tuple[str, ...] = ()
    unseen: int = 0
    notes: tuple[str, ...] = ()
    skipped: str | None = None

    def lines(self) -> Iterator[str]:
        """The window in a task's log."""
        yield (
            f"{self.window}: {self.matured:,} of {self.rows:,} answers of version {self.version} "
            "have a label"
        )
        for name in dict.fromkeys((*self.realised, *self.estimated)):
            said = [
                f"realised {self.realised[name]}" if name in self.realised else "",
                f"estimated {self.estimated[name]}" if name in self.estimated else "",
                f"at promotion {self.reference[name]:.4f}" if name in self.reference else "",
                f"naive {self.naive[name]:.4f}" if name in self.naive else "",
            ]
            yield f"  {name}: {', '.join(filter(None, said))}"
        if self.target is not None:
            t = self.target
            yield f"  labels: {t.method} {t.distance:.3f} (bound: {t.threshold:g})" + (
                " DRIFTED" if t.drifted else ""
            )
        if "expected_calibration_error" in self.calibration:
            before = self.calibration_reference.get("expected_calibration_error")
            yield f"  calibration error: {self.calibration['expected_calibration_error']:.4f}" + (
                f", at promotion {before:.4f}" if before is not None else ""
            )
        yield from (f"  {note}" for note in self.notes)
        if self.skipped:
            yield f"  not judged by {self.metric}: {self.skipped}"
        if self.violates or not self.skipped:
            basis = "" if self.skipped else f" (by {self.basis} {self.metric})"
            yield f"  violates: {', '.join(self.violates) or 'nothing'}{basis}"
        yield from (f"    {reason}" for reason in self.because)


class PerformanceReport(Result):
    """Performance, window by window, and the concept-drift detectors after these labels."""

    kind = "performance"
    as_of: AwareDatetime
    sequence: int
    windows: tuple[WindowPerformance, ...] = ()
    detections: tuple[Detection, ...] = ()
    detectors: dict[str, DetectorState] = {}

    def describe(self) -> Iterator[str]:
        if not self.windows:
            yield "no new labels to measure by"
        for window in self.windows:
            yield from window.lines()
        for found in self.detections:
            yield (
                f"{found.detector}: the error {'rose' if found.worse else 'fell'} from "
                f"{found.before:.4f} to {found.after:.4f} at {found.at.isoformat()} ({found.window})"
            )


class RaisedSignal(Contract):
    """A signal that monitoring raised: by which window, and why."""

    cause: str
    key: str
    window: str
    reasons: tuple[str, ...]


class MonitorReport(Result):
    """What monitoring put into the ledger, and how the model stands."""

    kind = "monitoring"
    as_of: AwareDatetime
    sequence: int
    measured: int = 0
    signals: tuple[RaisedSignal, ...] = ()
    futile: int = 0
    priority: str | None = None
    escalation: str | None = None
    opened: bool = False

    def describe(self) -> Iterator[str]:
        yield f"measurements recorded: {self.measured}"
        for signal in self.signals:
            yield f"signal {signal.cause} by {signal.window}: {'; '.join(signal.reasons)}"
        if not self.signals:
            yield "no signal"
        yield f"futile retrains: {self.futile}; priority: {self.priority or 'none'}"
        if self.escalation:
            yield f"STOPPED: automatic retraining waits for a person: {self.escalation}"
