"""Monitor: put matured labels beside the prediction log; make signals of what was measured.

What is to be measured is found by comparing the ledger's scores with its measurements, so it
doesn't matter which event was lost or how many partitions came at once: the state at a moment
follows from the data known then. A label that comes late, or is corrected, makes its window be
measured again; the latest measurement of a window speaks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from evergreen.declaration import Declaration
from evergreen.ledger import records
from evergreen.ledger.tables import LabelRow, MeasurementRow, PartitionRow, ScoreRow
from evergreen.lifecycle import escalation
from evergreen.lifecycle.contracts import (
    DetectorState,
    DriftReport,
    LabelReport,
    LabelsKnown,
    MonitorReport,
    Origin,
    Partition,
    PerformanceReport,
    RaisedSignal,
    WatchedPartition,
    Window,
)
from evergreen.lifecycle.labels import label_partitions, label_tables, labels_of
from evergreen.lifecycle.rows import labels_apart
from evergreen.lifecycle.watched import known_labels
from evergreen.lifecycle.windows import CAUSE_OF
from evergreen.store import digest_of
from evergreen.workspace import Workspace


def join_labels(
    declaration: Declaration, workspace: Workspace, *, as_of: datetime | None = None
) -> LabelReport | None:
    """Find what was learned of the prediction log since the last monitoring.

    :param as_of: labels that became known later don't count; the data watermark when None.
    :returns: the partitions and windows to measure; None when nothing has been registered.
    """
    name = declaration.name
    with workspace.ledger.read() as session:
        moment = as_of or records.watermark(session, name)
        if moment is None:
            return None
        through = records.sequence(session, name)
        live = records.champion(session, name, moment)
        rows = {row.key: row for row in records.latest_partitions(session, name, through)}
        before = records.labels_known(session, name)
        scores = _latest_scores(records.scores(session, name), rows, moment)
        seen = {
            (row.window, row.version, row.digest)
            for row in records.measurements(session, name, "drift", bare=True)
        }
    past = {score.partition: _of_revision(before, score) for score in scores}
    awaited = [
        rows[key]
        for key, known in past.items()
        if known is None or rows[key].end + declaration.monitoring.patience >= moment
    ]
    tables = _label_tables(declaration, workspace, awaited, through)
    watched = {
        score.partition: _watch(
            workspace,
            rows[score.partition],
            score,
            past[score.partition],
            tables.get(score.partition),
            moment,
        )
        for score in scores
    }
    windows = [
        window
        for window in _windows(declaration, list(watched.values()), before, seen)
        if window.fresh or window.learned
    ]
    needed = {key for window in windows for key in window.partitions}
    versions = {window.version for window in windows}
    return LabelReport(
        model=name,
        as_of=moment,
        sequence=through,
        live=live.version if live else None,
        partitions=tuple(part for key, part in watched.items() if key in needed),
        windows=tuple(windows),
        origins=_origins(workspace, name, versions),
    )


def detector_states(
    declaration: Declaration, workspace: Workspace, labels: LabelReport
) -> dict[str, DetectorState]:
    """The concept-drift detectors of each version, as the monitoring before this one left them.

    A task that is cleared after its run has ended finds its own state in the ledger: not that.
    """
    with workspace.ledger.read() as session:
        rows = records.detectors_before(session, declaration.name, labels.as_of, labels.sequence)
    latest = {row.version: row for row in rows}
    return {v: DetectorState.model_validate(row.evidence["state"]) for v, row in latest.items()}


def raise_signals(
    declaration: Declaration,
    workspace: Workspace,
    labels: LabelReport,
    drift: DriftReport,
    performance: PerformanceReport,
) -> MonitorReport:
    """Write down what was measured and raise a signal for each cause a window violates.

    One transaction: labels known, measurements, signals, and the stop of automatic retraining
    when it was futile too often. A repeat writes nothing; nor does a run that was cleared after a
    later one has measured more.
    """
    key = ("model", "kind", "window", "version", "as_of", "sequence", "digest")
    with workspace.ledger.write() as session:
        records.lock(session, declaration.name)
        rows, signals = [], []
        if records.watched_through(session, declaration.name) <= labels.sequence:
            for part in labels.partitions:
                _record_labels(session, labels, part)
            found = _measured(labels, drift, performance)
            rows = [records.put(session, row, *key) for row in found]
            signals = list(_raise(session, declaration, labels, rows))
        escalation.review(session, declaration, labels.as_of)
        now = escalation.standing(session, declaration)
    return MonitorReport(
        model=declaration.name,
        as_of=labels.as_of,
        sequence=labels.sequence,
        measured=len(rows),
        signals=tuple(signals),
        futile=now.futile,
        priority=now.priority,
        escalation=now.stopped.reason if now.stopped else None,
        opened=now.stopped is not None and now.stopped.as_of == labels.as_of,
    )


def _latest_scores(
    scores: Sequence[ScoreRow], partitions: Mapping[str, PartitionRow], as_of: datetime
) -> list[ScoreRow]:
    """Each partition's latest score, by event time; of partitions that were over by ``as_of``.

    A label finds its answer by the row's place in the file: a revision that has landed and was
    not scored yet, or is blocked, is not looked at.
    """
    latest = {score.partition: score for score in scores}
    known = [
        score
        for score in latest.values()
        if score.partition in partitions and partitions[score.partition].revision == score.revision
    ]
    over = [s for s in known if partitions[s.partition].end <= as_of]
    return sorted(over, key=lambda score: partitions[score.partition].start)


def _of_revision(before: Mapping[tuple[str, str], LabelRow], score: ScoreRow) -> LabelRow | None:
    row = before.get((score.partition, score.version))
    return row if row is not None and row.revision == score.revision else None


def _label_tables(
    declaration: Declaration, workspace: Workspace, rows: Sequence[PartitionRow], through: int
) -> dict[str, str]:
    """Partition → the URI of its label table, written unless it is there."""
    store, partitions = workspace.store, [Partition.from_row(row) for row in rows]
    if labels_apart(declaration) and partitions:
        landed = label_partitions(declaration, workspace, partitions, through)
        made = label_tables(declaration, store, partitions, landed)
        return {key: store.uri(name) for key, name in made.tables.items()}
    label = declaration.data.label.model_dump(mode="json")
    tables = {}
    for each in partitions:
        name = f"tables/labels/{declaration.name}/{digest_of([label, each.digest])}.parquet"
        if not store.exists(name):
            store.put_table(name, labels_of(declaration, workspace, each, through))
        tables[each.key] = store.uri(name)
    return tables


def _watch(
    workspace: Workspace,
    row: PartitionRow,
    score: ScoreRow,
    before: LabelRow | None,
    uri: str | None,
    as_of: datetime,
) -> WatchedPartition:
    """A scored partition beside its labels; read anew only where labels may have come.

    :param uri: of its labels; None when nobody waits for them any more.
    """
    if before is not None and (uri is None or (before.uri == uri and before.pending == 0)):
        uri, matured, pending = before.uri, before.matured, before.pending
    else:
        assert uri is not None  # noqa: S101 - a partition that was never watched is awaited
        labels = workspace.store.get_table(uri)
        matured = len(known_labels(labels, as_of))
        pending = int((labels["label_timestamp"] > as_of).sum())
    return WatchedPartition(
        partition=score.partition,
        revision=score.revision,
        version=score.version,
        start=row.start,
        end=row.end,
        predictions=score.uri,
        labels=uri,
        rows=score.rows,
        matured=matured,
        pending=pending,
        before=LabelsKnown(uri=before.uri, as_of=before.as_of) if before else None,
    )


def _windows(
    declaration: Declaration,
    parts: Sequence[WatchedPartition],
    before: Mapping[tuple[str, str], LabelRow],
    seen: set[tuple[str, str, str]],
) -> Iterator[Window]:
    """The window that ends with each partition: it and those before it of the same version."""
    length = declaration.monitoring.window
    changed = {part.partition for part in parts if _changed(part, before)}
    for last in range(len(parts)):
        newest = parts[last]
        chosen: list[WatchedPartition] = []
        for part in reversed(parts[max(0, last - length + 1) : last + 1]):
            if part.version != newest.version:
                break
            chosen.insert(0, part)
        keys = tuple(part.partition for part in chosen)
        yield Window(
            key=newest.partition,
            version=newest.version,
            partitions=keys,
            start=chosen[0].start,
            end=newest.end,
            fresh=(newest.partition, newest.version, window_digest(chosen)) not in seen,
            learned=any(key in changed for key in keys),
        )


def window_digest(parts: Iterable[WatchedPartition]) -> str:
    """What a window's answers are known by: a partition scored again makes it another one."""
    return digest_of([[part.partition, part.revision, part.version] for part in parts])


def _changed(part: WatchedPartition, before: Mapping[tuple[str, str], LabelRow]) -> bool:
    row = before.get((part.partition, part.version))
    return row is None or (row.matured, row.uri) != (part.matured, part.labels)


def _origins(workspace: Workspace, model: str, versions: set[str]) -> dict[str, Origin]:
    found = {}
    with workspace.ledger.read() as session:
        for version in sorted(versions):
            row = records.promotion_of_version(session, model, version)
            if row is not None and row.origin:  # versions promoted before origins were kept
                found[version] = Origin.model_validate(row.origin)
    return found


def _record_labels(session: Session, report: LabelReport, part: WatchedPartition) -> None:
    row = LabelRow(
        model=report.model,
        partition=part.partition,
        revision=part.revision,
        version=part.version,
        as_of=report.as_of,
        sequence=report.sequence,
        rows=part.rows,
        matured=part.matured,
        pending=part.pending,
        uri=part.labels,
    )
    key = ("model", "partition", "revision", "version", "as_of", "sequence")
    records.put(session, row, *key)


def _measured(
    labels: LabelReport, drift: DriftReport, performance: PerformanceReport
) -> Iterator[MeasurementRow]:
    windows = {window.key: window for window in labels.windows}
    parts = {part.partition: part for part in labels.partitions}

    def row(kind: str, key: str, **rest: object) -> MeasurementRow:
        window = windows[key]
        answered = [parts[each] for each in window.partitions]
        return MeasurementRow(
            model=labels.model,
            kind=kind,
            window=key,
            version=window.version,
            start=window.start,
            end=window.end,
            as_of=labels.as_of,
            sequence=labels.sequence,
            digest=window_digest(answered),
            **rest,
        )

    for found in drift.windows:
        yield row(
            "drift", found.window, judged=found.skipped is None, violates=[*found.violates],
            evidence=found.to_dict(),
        )  # fmt: skip
    for measured in performance.windows:
        yield row(
            "performance", measured.window, judged=measured.skipped is None,
            violates=[*measured.violates], evidence=measured.to_dict(),
        )  # fmt: skip
    newest = {window.version: window.key for window in labels.windows}
    for version, state in performance.detectors.items():
        if version in newest:
            yield row(
                "concept", newest[version], judged=False, violates=[],
                evidence={"state": state.to_dict()},
            )  # fmt: skip


def _raise(
    session: Session, declaration: Declaration, labels: LabelReport, rows: Sequence[MeasurementRow]
) -> Iterator[RaisedSignal]:
    """A signal for each (cause, window, version), of versions that are live."""
    causes: dict[tuple[str, str], list[str]] = {}
    by_window = {row.window: row for row in rows}
    for measurement in rows:
        for found in measurement.violates:
            told = _told(measurement, found)
            causes.setdefault((CAUSE_OF[found], measurement.window), []).append(told)
    for (cause, window), reasons in causes.items():
        version = by_window[window].version
        if version != labels.live:
            continue
        key = f"{window}/{version}"
        evidence = {"window": window, "version": version, "reasons": reasons}
        records.raise_signal(session, declaration.name, cause, key, labels.as_of, evidence)
        yield RaisedSignal(cause=cause, key=key, window=window, reasons=tuple(reasons))


def _told(row: MeasurementRow, found: str) -> str:
    """One violation in words, for the person who asks why."""
    evidence = row.evidence
    if found == "inputs":
        drifted = [c["column"] for c in evidence["columns"] if c["drifted"]]
        return (
            f"inputs: {', '.join(drifted[:5])} drifted, {evidence['share']:.0%} by importance "
            f"(bound {evidence['share_bound']:.0%})"
        )
    if found == "prediction":
        far = next(c for c in evidence["prediction"] if c["drifted"])
        return f"prediction: {far['method']} {far['distance']:.3f} (bound {far['threshold']:g})"
    if found == "target":
        target = evidence["target"]
        return (
            f"target: {target['method']} {target['distance']:.3f} (bound {target['threshold']:g})"
        )
    if found == "concept":
        return "concept: the stream of labelled errors rose"
    return "performance: " + "; ".join(evidence["because"])
