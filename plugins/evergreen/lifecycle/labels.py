"""Labels: which are known of a partition's rows, and when each became known.

They stand in the raw row, or land in a table of their own, cut by when they became known. Then a
label finds its row by key, whichever came first; a later label for the same key corrects an
earlier one. A partition's label table holds all of them, known by now or not: who reads it picks
the latest known by a moment (`evergreen.lifecycle.watched.known_labels`). It is named by the files
that it was made from, so a new label file changes only the tables of rows that it is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import Field

from evergreen.declaration import Declaration
from evergreen.ledger import records
from evergreen.lifecycle.columns import of_its_kind
from evergreen.lifecycle.contracts import Contract, Partition
from evergreen.lifecycle.label_files import LabelFiles
from evergreen.lifecycle.rows import LABELS, label_timestamps, labels_apart, main_file, read_raw
from evergreen.lifecycle.sets import put_table
from evergreen.store import Store, digest_of
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

LABELS_VERSION = 1
"""Raised when the same files give other label tables; all are then made anew."""


class LabelTables(Contract):
    """The label tables of some partitions, made from some label files.

    ``tables`` maps a partition's key to its table's name below the store's root: ``row_id``,
    ``label``, ``label_timestamp``. Of the ``labels`` in the files, ``orphans`` are of no row of
    these partitions, and ``doubled`` of rows in several.
    """

    tables: dict[str, str] = Field(default_factory=dict)
    labels: int = 0
    orphans: int = 0
    doubled: int = 0


def labels_of(
    declaration: Declaration,
    workspace: Workspace,
    partition: Partition,
    through: int,
    *,
    until: datetime | None = None,
) -> pd.DataFrame:
    """Every label of a partition's rows that is, or will be, known.

    :param through: label files registered later are not read.
    :param until: nor are those that begin after it.
    :returns: ``row_id`` (int64, the position in the raw partition), ``label``,
        ``label_timestamp`` (UTC, µs), sorted by row and time. A corrected row stands there once
        for each of its labels; of several at the same moment, the last in its file comes last.
    :raises DataBlockedError: when keys, or labels, are numbers here and text there.
    """
    if not labels_apart(declaration):
        return _own(declaration, workspace.store, partition)
    landed = label_partitions(declaration, workspace, [partition], through)
    files = [file for file in landed if until is None or file.start <= until]
    (found,) = LabelFiles(declaration, workspace.store, files).of([partition])
    return found.labels


def label_partitions(
    declaration: Declaration, workspace: Workspace, partitions: Sequence[Partition], through: int
) -> tuple[Partition, ...]:
    """The partitions of the labels' own table that can hold labels of these, oldest first.

    A label isn't known before its row's partition has begun.
    """
    if not labels_apart(declaration):
        return ()
    first = min(partition.start for partition in partitions)
    with workspace.ledger.read() as session:
        rows = records.latest_partitions(session, declaration.name, through, LABELS)
    return tuple(Partition.from_row(row) for row in rows if row.end > first)


def label_tables(
    declaration: Declaration,
    store: Store,
    partitions: Sequence[Partition],
    labels: Sequence[Partition],
) -> LabelTables:
    """The label tables of partitions, computed unless they are there: one look at each file.

    :param partitions: of the model's own table, oldest first.
    :param labels: of the labels' own table, oldest first.
    :returns: none where labels stand in the rows themselves.
    :raises DataBlockedError: as `labels_of`.
    """
    if not labels_apart(declaration):
        return LabelTables()
    recipe = _recipe(declaration)
    inputs = [recipe, *([p.digest for p in every] for every in (partitions, labels))]
    name = f"documents/label-tables/{digest_of(inputs)}.json"
    try:
        return LabelTables.model_validate_json(store.read_bytes(name))
    except FileNotFoundError:
        files = LabelFiles(declaration, store, labels)
    tables = {}
    for each in files.of(partitions):
        key, rows = each.partition.key, each.labels
        digest = digest_of([*recipe, each.partition.digest, each.sources, str(rows["label"].dtype)])
        tables[key] = f"tables/labels/{declaration.name}/{key}-{digest[:16]}.parquet"
        if not store.exists(tables[key]):
            put_table(store, tables[key], rows, {"partition": key})
    found = LabelTables(
        tables=tables, labels=files.count, orphans=files.orphans, doubled=files.doubled
    )
    store.put_bytes(name, found.model_dump_json(indent=1).encode())
    return found


def _recipe(declaration: Declaration) -> list[Any]:
    data = declaration.data
    label = data.label.model_dump(mode="json", include={"column", "timestamp", "key"})
    return [LABELS_VERSION, label, data.timezone, data.event_timestamp]


def _own(declaration: Declaration, store: Store, partition: Partition) -> pd.DataFrame:
    """The labels that stand in the raw rows themselves."""
    import pandas as pd

    label = declaration.data.label.column
    raw = read_raw(store, declaration, main_file(partition), columns=[label])
    columns = {
        "row_id": raw.index.to_series().astype("int64"),
        "label": of_its_kind(raw[label]),
        "label_timestamp": label_timestamps(declaration, raw),
    }
    labels = pd.DataFrame(columns)
    return labels[labels["label_timestamp"].notna()].reset_index(drop=True)
