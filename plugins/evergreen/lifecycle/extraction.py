"""Extract: freeze the training window into an immutable snapshot.

A snapshot names partitions by content, those of a labels' table too, and says as of when labels
count as known. It copies nothing: ingestion keeps every landed file under its sha256. The same
decision gives the same snapshot, whatever has landed since.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

from evergreen.declaration import Declaration
from evergreen.errors import DataBlockedError
from evergreen.ledger import records
from evergreen.lifecycle.contracts import Partition, Snapshot
from evergreen.lifecycle.labels import LabelTables, label_partitions, label_tables
from evergreen.lifecycle.rows import label_timestamps, labels_apart, main_file, read_raw
from evergreen.lifecycle.watched import known_labels
from evergreen.workspace import Workspace


def extract(
    declaration: Declaration,
    workspace: Workspace,
    *,
    as_of: datetime,
    sequence: int,
    lookback: timedelta = timedelta(0),
) -> Snapshot:
    """Freeze the declared training window.

    :param as_of: labels that became known later are not part of it.
    :param sequence: partitions registered later are not part of it.
    :param lookback: how much raw history before the window the features read.
    :raises DataBlockedError: when the window holds no partition or no matured label.
    """
    every = _partitions(declaration, workspace, sequence)
    window = declaration.training.window
    start = as_of - window.length if window.length else None
    chosen = [p for p in every if p.start < as_of and (start is None or p.end > start)]
    snapshot = _freeze(declaration, workspace, "train", every, chosen, as_of, sequence, lookback)
    if snapshot.matured == 0:
        raise DataBlockedError(
            f"{declaration.name}: none of {snapshot.rows:,} rows has a label known by {as_of.isoformat()} "
            f"({snapshot.immature:,} become known later, {snapshot.never:,} never). "
            "Check data.label and that labels are landed."
        )
    return snapshot


def extract_unscored(
    declaration: Declaration,
    workspace: Workspace,
    *,
    lookback: timedelta = timedelta(0),
    keys: Sequence[str] = (),
) -> Snapshot | None:
    """Freeze the partitions that have no predictions in their latest revision.

    Only those that had a champion when they began: a partition is scored by the version that
    was live then, never by one that learned from it.

    :param keys: only these partitions, scored before or not.
    :returns: None when there is nothing to score.
    """
    with workspace.ledger.read() as session:
        last = records.sequence(session, declaration.name)
        done = {(row.partition, row.revision) for row in records.scores(session, declaration.name)}
        first = records.first_promotion(session, declaration.name)
    every = _partitions(declaration, workspace, last)
    chosen = [p for p in every if (p.key in keys if keys else (p.key, p.revision) not in done)]
    chosen = [p for p in chosen if first is not None and first.as_of <= p.start]
    if not chosen:
        return None
    as_of = max(p.end for p in every)
    return _freeze(declaration, workspace, "score", every, chosen, as_of, last, lookback)


def _partitions(declaration: Declaration, workspace: Workspace, through: int) -> list[Partition]:
    with workspace.ledger.read() as session:
        rows = records.latest_partitions(session, declaration.name, through)
    return [Partition.from_row(row) for row in rows if row.key not in declaration.data.exclude]


def _freeze(
    declaration: Declaration,
    workspace: Workspace,
    purpose: Literal["train", "score"],
    every: Sequence[Partition],
    chosen: Sequence[Partition],
    as_of: datetime,
    through: int,
    lookback: timedelta,
) -> Snapshot:
    if not chosen:
        raise DataBlockedError(
            f"{declaration.name}: no partition lies in the training window as of {as_of.isoformat()}; "
            f"registered are {', '.join(p.key for p in every[-3:]) or 'none'}. Check training.window."
        )
    names = {p.key for p in chosen}
    context = [p for p in every if p.key not in names and _feeds(p, chosen, lookback)]
    labels = label_partitions(declaration, workspace, chosen, through)
    tables = label_tables(declaration, workspace.store, chosen, labels)
    matured, immature, never = _count_labels(declaration, workspace, chosen, tables, as_of)
    return Snapshot(
        model=declaration.name,
        purpose=purpose,
        as_of=as_of,
        start=chosen[0].start,
        end=chosen[-1].end,
        partitions=tuple(chosen),
        context=tuple(context),
        rows=sum(p.rows for p in chosen),
        matured=matured,
        immature=immature,
        never=never,
        columns={source: file.columns for source, file in chosen[-1].files.items()},
        labels=labels,
        orphans=tables.orphans,
    )


def _feeds(earlier: Partition, chosen: Sequence[Partition], lookback: timedelta) -> bool:
    """Whether a partition's rows reach into the lookback of a chosen one."""
    return any(p.start - lookback < earlier.end <= p.start for p in chosen)


def _count_labels(
    declaration: Declaration,
    workspace: Workspace,
    partitions: Sequence[Partition],
    tables: LabelTables,
    as_of: datetime,
) -> tuple[int, int, int]:
    """Rows whose label is known by ``as_of``, known later, and never."""
    matured = labelled = 0
    for partition in partitions:
        known, ever = (
            _known_apart(workspace, tables.tables[partition.key], as_of)
            if labels_apart(declaration)
            else _known_in_rows(declaration, workspace, partition, as_of)
        )
        matured, labelled = matured + known, labelled + ever
    return matured, labelled - matured, sum(p.rows for p in partitions) - labelled


def _known_in_rows(
    declaration: Declaration, workspace: Workspace, partition: Partition, as_of: datetime
) -> tuple[int, int]:
    """How many rows have a label by ``as_of``, and ever."""
    label = declaration.data.label.column
    raw = read_raw(workspace.store, declaration, main_file(partition), columns=[label])
    known = label_timestamps(declaration, raw)
    return int((known <= as_of).sum()), int(known.notna().sum())


def _known_apart(workspace: Workspace, table: str, as_of: datetime) -> tuple[int, int]:
    labels = workspace.store.get_table(table)
    return len(known_labels(labels, as_of)), int(labels["row_id"].nunique())
