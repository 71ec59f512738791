"""The checks of a training snapshot's labels as a whole: enough of them, of two classes, each for one row.

Where labels land in a table of their own they are judged as they were joined: as of the snapshot,
the latest for each row, without the rows set aside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

from evergreen.declaration import Declaration, Task
from evergreen.lifecycle.contracts import Check, Partition, Snapshot
from evergreen.lifecycle.labels import LabelTables, label_tables
from evergreen.lifecycle.rows import labels_apart
from evergreen.lifecycle.watched import known_labels
from evergreen.store import Store

WHOLE = "snapshot"
"""Stands for the partition's key where a check is about all of them."""


def label_checks(
    declaration: Declaration,
    store: Store,
    snapshot: Snapshot,
    in_rows: Mapping[str, Mapping[str, datetime]],
    aside: Mapping[str, str],
) -> Iterator[Check]:
    """There is something to learn: labels known as of the snapshot, and two classes of them.

    :param in_rows: partition digest → the classes that stand in its rows, and when each was known.
    :param aside: partition digest → the table of its rows that are set aside.
    :raises DataBlockedError: as `evergreen.lifecycle.labels.label_tables`.
    """
    yield Check(
        name="matured rows",
        partition=WHOLE,
        severity="block",
        passed=snapshot.matured > 0,
        observed=f"{snapshot.matured:,} ({snapshot.immature:,} not yet, {snapshot.never:,} never labelled)",
        bound="at least 1",
    )
    tables = label_tables(declaration, store, snapshot.partitions, snapshot.labels)
    if labels_apart(declaration):
        yield _one_row_each(declaration, tables)
    if declaration.task.classifies:
        classes: set[str] = set()
        for partition in snapshot.partitions:
            if partition.key in tables.tables:
                classes |= _joined(store, snapshot, partition, tables, aside)
            else:
                found = in_rows[partition.digest]
                classes |= {value for value, at in found.items() if at <= snapshot.as_of}
        yield _enough_classes(declaration, sorted(classes))


def plain(value: object) -> str:
    """A label value in words.

    >>> plain(1.0), plain("late")
    ('1', 'late')
    """
    return f"{value:g}" if isinstance(value, float) else str(value)


def _joined(
    store: Store,
    snapshot: Snapshot,
    partition: Partition,
    tables: LabelTables,
    aside: Mapping[str, str],
) -> set[str]:
    labels = known_labels(store.get_table(tables.tables[partition.key]), snapshot.as_of)
    if partition.digest in aside:
        rows = store.get_table(aside[partition.digest])["row_id"]
        labels = labels[~labels["row_id"].isin(rows)]
    return {plain(value) for value in labels["label"].unique()}


def _one_row_each(declaration: Declaration, tables: LabelTables) -> Check:
    """What no partition can see by itself: rows of one key in several."""
    return Check(
        name="label keys unique",
        partition=WHOLE,
        severity="block",
        passed=tables.doubled == 0,
        observed=f"{tables.doubled:,} of {tables.labels:,} labels are of rows in several partitions",
        bound=f"one row for each {', '.join(declaration.data.label.key)}",
    )


def _enough_classes(declaration: Declaration, seen: list[str]) -> Check:
    binary = declaration.task is Task.BINARY
    some = ", ".join(seen[:5]) + (", …" if len(seen) > 5 else "")
    return Check(
        name=f"classes of {declaration.data.label.column}",
        partition=WHOLE,
        severity="block",
        passed=len(seen) == 2 if binary else len(seen) > 1,
        observed=f"{len(seen)}: {some or 'none'}",
        bound="exactly 2" if binary else "at least 2",
    )
