"""Ingest: find partitions that have arrived, register them in order, exactly once.

The landing folder is listed and compared with the ledger, so it doesn't matter which event was
lost, which file was late or how many came at once. A file is copied by its sha256 before it is
registered: from then on, what lies in the landing folder can change without changing the past.
A changed file becomes a new revision, said loudly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration, Period
from evergreen.errors import PartitionError
from evergreen.ledger import records
from evergreen.ledger.tables import PartitionRow
from evergreen.lifecycle.contracts import IngestReport, Partition, PartitionFile, Refused
from evergreen.lifecycle.rows import (
    MAIN,
    label_timestamps,
    normalise_times,
    read_file,
    required_columns,
)
from evergreen.store import digest_of
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd
    from upath import UPath

_MOST_GAPS = 100


@dataclass(frozen=True)
class Landed:
    """A file found in the landing folder."""

    key: str
    uri: str
    path: UPath
    fingerprint: str


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
    landed = _list(declaration, workspace)
    with workspace.ledger.read() as session:
        known = {row.key: row for row in records.latest_partitions(session, declaration.name)}
    registered: list[PartitionRow] = []
    early, refused, waiting = [], [], {}
    for key in sorted(set().union(*(files for files in landed.values()))):
        absent = tuple(source for source, files in landed.items() if key not in files)
        if absent:
            waiting[key] = absent
            continue
        if declaration.data.partition.end(key) > as_of:
            early.append(key)
            continue
        files = {source: found[key] for source, found in landed.items()}
        try:
            row = _candidate(declaration, workspace, key, files, known.get(key))
        except PartitionError as error:
            refused.append(Refused(key=key, uri=files[MAIN].uri, reason=str(error)))
            continue
        if row is not None:
            registered.append(_register(workspace, row, run_id))
    with workspace.ledger.read() as session:
        if run_id is not None:
            registered = [*records.registered_in(session, declaration.name, run_id)]
        mark = records.watermark(session, declaration.name)
        keys = {row.key for row in records.latest_partitions(session, declaration.name)}
    return IngestReport(
        model=declaration.name,
        registered=tuple(Partition.from_row(row) for row in registered),
        late=tuple(row.key for row in registered if row.late),
        waiting=waiting,
        early=tuple(early),
        refused=tuple(refused),
        missing=tuple(_gaps(declaration.data.partition, keys)),
        watermark=mark,
    )


def _list(declaration: Declaration, workspace: Workspace) -> dict[str, dict[str, Landed]]:
    data = declaration.data
    uris = {MAIN: data.uri, **{name: source.uri for name, source in data.sources.items()}}
    return {name: _list_source(declaration, workspace, uri) for name, uri in uris.items()}


def _list_source(declaration: Declaration, workspace: Workspace, uri: str) -> dict[str, Landed]:
    """Files that match the declared URI, by partition key; other names are not partitions."""
    absolute = workspace.landing_uri(uri)
    before, after = absolute.split("{partition}")
    folder, _, prefix = before.rpartition("/")
    pattern = re.compile(re.escape(prefix) + "(.+)" + re.escape(after))
    found = {}
    with workspace.store.reachable():
        root = workspace.store.path(folder)
        depth = after.count("/") + 1
        listed = root.fs.find(root.path, maxdepth=depth, detail=True) if root.exists() else {}
        for name, info in sorted(listed.items()):
            match = pattern.fullmatch("/".join(name.split("/")[-depth:]))
            if match and _is_key(declaration.data.partition, match[1]):
                key = match[1]
                uri = absolute.replace("{partition}", key)
                found[key] = Landed(key, uri, workspace.store.path(uri), _fingerprint(info))
    return found


def _fingerprint(info: Mapping[str, Any]) -> str:
    """What changes when a file does, without reading it: size and ETag or modification time."""
    changed = info.get("ETag") or info.get("mtime") or info.get("LastModified")
    return f"{info.get('size')}/{changed}"


def _is_key(period: Period, text: str) -> bool:
    try:
        period.start(text)
    except ValueError:
        return False
    return True


def _candidate(
    declaration: Declaration,
    workspace: Workspace,
    key: str,
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
        if source == MAIN:
            maturity = _maturity(declaration, frame)
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
    period = declaration.data.partition
    return PartitionRow(
        model=declaration.name,
        key=key,
        revision=known.revision + 1 if known else 1,
        start=period.start(key),
        end=period.end(key),
        digest=digest,
        rows=files[MAIN].rows,
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
    data = declaration.data
    column = data.event_timestamp if source == MAIN else data.sources[source].event_timestamp
    start, end = data.partition.start(file.key), data.partition.end(file.key)
    outside = frame[column].isna() | (frame[column] < start) | (frame[column] >= end)
    if outside.any():
        first = frame.loc[outside, column].iloc[0]
        raise PartitionError(
            f"{file.uri}: {int(outside.sum()):,} of {len(frame):,} rows have a {column} outside their "
            f"partition, first row {int(outside.to_numpy().argmax())}: {first}; allowed is "
            f"{start.isoformat()} up to {end.isoformat()}. Cut the file by event time, or check data.timezone."
        )
    return frame


def _maturity(declaration: Declaration, frame: pd.DataFrame) -> dict[str, int]:
    """How many labels become known by the end of each hour or day: ISO end → rows, ascending."""
    step = "h" if declaration.data.partition is Period.HOUR else "D"
    known = label_timestamps(declaration, frame).dropna().dt.ceil(step)
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
        row.late = mark is not None and row.end < mark and row.revision == 1
        written = records.put(session, row, "model", "key", "revision")
        records.raise_signal(
            session,
            row.model,
            "new_data",
            f"{row.key}/{row.revision}",
            max(mark or row.end, row.end),
            {"partition": row.key, "revision": row.revision, "rows": row.rows, "run_id": run_id},
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
