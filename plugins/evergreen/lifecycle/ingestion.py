"""Ingest: find partitions that have arrived, register them in order, exactly once.

The landing folder is listed and compared with the ledger, so it doesn't matter which event was
lost, which file was late or how many came at once. A file is copied by its sha256 before it is
registered: from then on, what lies in the landing folder can change without changing the past.
A changed file becomes a new revision, said loudly. Labels that land in a table of their own are
partitions of their own: neither the data nor they wait for the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from evergreen.declaration import Declaration, Period
from evergreen.errors import PartitionError
from evergreen.ledger import records
from evergreen.ledger.tables import PartitionRow
from evergreen.lifecycle.contracts import IngestReport, Partition, PartitionFile, Refused
from evergreen.lifecycle.contracts.data import partition_name
from evergreen.lifecycle.landing import Landed, list_landed
from evergreen.lifecycle.rows import (
    LABELS,
    MAIN,
    label_timestamps,
    labels_apart,
    normalise_times,
    read_file,
    required_columns,
    time_columns,
)
from evergreen.store import digest_of
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

_MOST_GAPS = 100


def ingest(
    declaration: Declaration, workspace: Workspace, as_of: datetime, run_id: str | None = None
) -> IngestReport:
    """Register what has arrived since the last look.

    Good partitions are registered in order of event time, whatever is wrong with others; what
    can't be registered is reported as refused and looked at again next time.

    :param as_of: a partition that isn't over by then waits, so that a file named for the future
        can't move the watermark.
    :param run_id: the DAG run; asked again with it, what it had registered is reported again, so
        that a task killed before it could say so is not silent when it is run again.
    :raises UnavailableError: when the landing folder, store or ledger can't be reached.
    """
    tables = (MAIN, LABELS) if labels_apart(declaration) else (MAIN,)
    looked = [_look(declaration, workspace, table, as_of, run_id) for table in tables]
    registered = [row for look in looked for row in look.registered]
    with workspace.ledger.read() as session:
        if run_id is not None:
            registered = [*records.registered_in(session, declaration.name, run_id)]
        mark = records.watermark(session, declaration.name)
    return IngestReport(
        model=declaration.name,
        registered=tuple(Partition.from_row(row) for row in registered),
        late=tuple(partition_name(row.source, row.key) for row in registered if row.late),
        waiting={name: absent for look in looked for name, absent in look.waiting.items()},
        early=tuple(name for look in looked for name in look.early),
        refused=tuple(refused for look in looked for refused in look.refused),
        missing=tuple(name for look in looked for name in look.missing),
        watermark=mark,
    )


@dataclass
class _Look:
    """What a look at one table's files has found; see `IngestReport`."""

    registered: list[PartitionRow] = field(default_factory=list)
    waiting: dict[str, tuple[str, ...]] = field(default_factory=dict)
    early: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def _look(
    declaration: Declaration, workspace: Workspace, table: str, as_of: datetime, run_id: str | None
) -> _Look:
    """Register the partitions of one table that have arrived whole."""
    landed = list_landed(declaration, workspace, table)
    with workspace.ledger.read() as session:
        rows = records.latest_partitions(session, declaration.name, source=table)
    known = {row.key: row for row in rows}
    newest = max((row.end for row in rows), default=None)
    found = _Look()
    for key in sorted(set().union(*(files for files in landed.values()))):
        name = partition_name(table, key)
        absent = tuple(source for source, files in landed.items() if key not in files)
        if absent:
            found.waiting[name] = absent
            continue
        if declaration.data.partition.end(key) > as_of:
            found.early.append(name)
            continue
        files = {source: each[key] for source, each in landed.items()}
        try:
            row = _candidate(declaration, workspace, table, files, known.get(key))
        except PartitionError as error:
            found.refused.append(Refused(key=name, uri=files[table].uri, reason=str(error)))
            continue
        if row is not None:
            row.late = newest is not None and row.end < newest and row.revision == 1
            found.registered.append(_register(workspace, row, run_id))
            newest = max(newest or row.end, row.end)
    there = {*known, *(row.key for row in found.registered)}
    gaps = _gaps(declaration.data.partition, there)
    found.missing = [partition_name(table, key) for key in gaps]
    return found


def _candidate(
    declaration: Declaration,
    workspace: Workspace,
    table: str,
    landed: Mapping[str, Landed],
    known: PartitionRow | None,
) -> PartitionRow | None:
    """The row to register for a landed partition; None when its content is registered already."""
    recorded = {name: PartitionFile(**file) for name, file in known.files.items()} if known else {}
    if all(s in recorded and recorded[s].fingerprint == f.fingerprint for s, f in landed.items()):
        return None
    files: dict[str, PartitionFile] = {}
    maturity: dict[str, int] = {}
    for source, file in landed.items():
        with workspace.store.reachable(), file.path.open("rb") as stream:
            stored, sha, size = workspace.store.put_object(stream)
        if source in recorded and recorded[source].sha256 == sha:
            files[source] = recorded[source]
            continue
        frame = _checked(declaration, workspace, source, stored, file)
        if source == (LABELS if labels_apart(declaration) else MAIN):
            maturity = _maturity(declaration, frame, source)
        files[source] = PartitionFile(
            uri=file.uri,
            sha256=sha,
            bytes=size,
            rows=len(frame),
            stored=stored,
            fingerprint=file.fingerprint,
            columns=_types(frame, file.uri),
        )
    digest = digest_of({source: file.sha256 for source, file in files.items()})
    if known and known.digest == digest:
        return None
    period, key = declaration.data.partition, landed[table].key
    return PartitionRow(
        model=declaration.name,
        source=table,
        key=key,
        revision=known.revision + 1 if known else 1,
        start=period.start(key),
        end=period.end(key),
        digest=digest,
        rows=files[table].rows,
        files={name: file.to_dict() for name, file in files.items()},
        maturity=maturity or (known.maturity if known else {}),
        late=False,
    )


def _checked(
    declaration: Declaration, workspace: Workspace, source: str, stored: str, file: Landed
) -> pd.DataFrame:
    """Read a landed file whole and check that its rows are this partition's."""
    frame = read_file(workspace.store.path(stored), file.uri)
    missing = [c for c in required_columns(declaration, source) if c not in frame.columns]
    if missing:
        raise PartitionError(
            f"{file.uri} has no column {', '.join(missing)}; found {', '.join(map(str, frame.columns))}. "
            "Land the file with it, or correct the declaration."
        )
    if frame.empty:
        raise PartitionError(
            f"{file.uri} holds no rows. Land it again with its rows, or remove it."
        )
    frame = normalise_times(declaration, source, frame, file.uri)
    data, column = declaration.data, time_columns(declaration, source)[0]
    start, end = data.partition.start(file.key), data.partition.end(file.key)
    outside = frame[column].isna() | (frame[column] < start) | (frame[column] >= end)
    if outside.any():
        what = "event time" if source != LABELS else "when labels became known"
        first = frame.loc[outside, column].iloc[0]
        raise PartitionError(
            f"{file.uri}: {int(outside.sum()):,} of {len(frame):,} rows have a {column} outside their "
            f"partition, first row {int(outside.to_numpy().argmax())}: {first}; allowed is "
            f"{start.isoformat()} up to {end.isoformat()}. Cut the file by {what}, or check data.timezone."
        )
    return frame


def _maturity(declaration: Declaration, frame: pd.DataFrame, source: str) -> dict[str, int]:
    """How many labels become known by the end of each hour or day: ISO end → rows, ascending.

    A label that is landed again in a later file, corrected, is news and counts again.
    """
    step = "h" if declaration.data.partition is Period.HOUR else "D"
    known = label_timestamps(declaration, frame, source).dropna().dt.ceil(step)
    return {
        moment.isoformat(): int(count)
        for moment, count in known.value_counts().sort_index().items()
    }


def _types(frame: pd.DataFrame, uri: str) -> dict[str, str]:
    import pyarrow as pa

    try:
        schema = pa.Schema.from_pandas(frame, preserve_index=False)
    except pa.ArrowException as error:
        raise PartitionError(
            f"{uri}: a column mixes types: {error}. Land it with one type."
        ) from error
    return {field.name: str(field.type) for field in schema}


def _register(workspace: Workspace, row: PartitionRow, run_id: str | None) -> PartitionRow:
    """The partition and the signal it raises, in one transaction."""
    with workspace.ledger.write() as session:
        mark = records.watermark(session, row.model)
        written = records.put(session, row, "model", "source", "key", "revision")
        name = partition_name(row.source, row.key)
        records.raise_signal(
            session,
            row.model,
            "new_data",
            f"{name}/{row.revision}",
            max(mark or row.end, row.end),
            {"partition": name, "revision": row.revision, "rows": row.rows, "run_id": run_id},
        )
    return written


def _gaps(period: Period, keys: set[str]) -> list[str]:
    """Partitions between the oldest and the newest for which nothing was registered."""
    if not keys:
        return []
    moment: datetime = period.start(min(keys))
    gaps: list[str] = []
    newest = max(keys)
    while (key := period.key(moment)) < newest and len(gaps) < _MOST_GAPS:
        gaps += [key] if key not in keys else []
        moment = period.end(key)
    return gaps
