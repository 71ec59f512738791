"""Compact: pieces of replicas' prediction logs become Parquet beside batch scoring's, once each.

Replicas ship segments of JSON lines, one for each answered row. A group of segments becomes one
file for each partition of event time, then one transaction of the ledger says that it has, then
the segments are deleted. Readers go by the ledger: a file that it doesn't name, as a killed or a
slower compactor leaves one, holds no answers. Each file says which segments it was made from, so
that such files are found, and deleted.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from evergreen.declaration import Declaration
from evergreen.errors import CorruptError
from evergreen.ledger import records
from evergreen.ledger.tables import SegmentRow, ServedRow
from evergreen.lifecycle.contracts import Compaction
from evergreen.lifecycle.servedlines import Piece, kinds_of, read_segment, segment_name, table_of
from evergreen.lifecycle.sets import footer, put_table
from evergreen.store import Store, digest_of
from evergreen.workspace import Workspace

_WRITING = threading.Lock()  # the store tells writers of one file apart by their processes only
GROUP_BYTES = 64 << 20  # of segments that are in memory at once; as columns they take more
_SEGMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)\.jsonl")
_FILE = re.compile(r"served-([0-9a-f]+)\.parquet")


def compact(declaration: Declaration, workspace: Workspace, *, at_most: int = 1000) -> Compaction:
    """Compact the oldest segments that the ledger doesn't know; delete those that it does.

    Safe beside another compactor: of two that want the same segment one does nothing, and what
    else was in its group waits for the next run. A segment that can't be read stays where it is
    and stops no other one.

    :param at_most: segments in one run, of those that can be read.
    :raises CorruptError: after all others are compacted, for a line that can't be read, naming
        segment and line; a last one without a newline was never answered, and is only counted.
    :raises DeclarationError: when a feature has the name of one of the log's own columns.
    """
    model = declaration.name
    found = _listed(workspace.store, model)
    with workspace.ledger.read() as session:
        known = _compactions(session, model, found)
    _finish(workspace, model, known)
    waiting = [segment for segment in found if segment not in known]
    failed: list[CorruptError] = []
    pieces = islice(_pieces(declaration, workspace, waiting, failed), at_most)
    made = [_compact_group(declaration, workspace, group) for group in _groups(pieces)]
    if failed:
        more, compacted = len(failed) - 1, sum(each.segments for each in made)
        raise CorruptError(
            f"{failed[0]} Segments besides it that can't be read: {more}; compacted: {compacted}."
        ) from failed[0]
    files: dict[str, list[str]] = {}
    for each in made:
        for partition, uri in each.files.items():
            files.setdefault(partition, []).append(uri)
    return Compaction(
        model=model,
        segments=sum(each.segments for each in made),
        rows=sum(each.rows for each in made),
        files={partition: ", ".join(uris) for partition, uris in sorted(files.items())},
        torn=sum(each.torn for each in made),
    )


def _listed(store: Store, model: str) -> list[str]:
    """The segments in the store, oldest first."""
    names = _names(store, segment_name(model, "any").rpartition("/")[0])
    return sorted(match[1] for name in names if (match := _SEGMENT.fullmatch(name)))


def _names(store: Store, folder: str) -> list[str]:
    """What is in a folder, by name only: what others rename or delete meanwhile has no more."""
    with store.reachable():
        path = store.path(folder)
        try:
            listed = path.fs.ls(path.path, detail=False, refresh=True)
        except FileNotFoundError:
            return []
    return [name.rstrip("/").rpartition("/")[2] for name in listed]


def _compactions(session: Session, model: str, segments: Iterable[str]) -> dict[str, str]:
    """Of these segments the ones that have been compacted, and in which compaction."""
    asked, found = list(segments), dict[str, str]()
    for start in range(0, len(asked), 500):  # SQLite allows some thousand values in a query
        rows = select(SegmentRow.segment, SegmentRow.compaction).where(
            SegmentRow.model == model, SegmentRow.segment.in_(asked[start : start + 500])
        )
        found.update((row.segment, row.compaction) for row in session.execute(rows))
    return found


def _groups(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Segments, read, in groups of at most `GROUP_BYTES`; a larger one is alone."""
    group: list[Piece] = []
    for piece in pieces:
        if group and sum(each.size for each in group) + piece.size > GROUP_BYTES:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _pieces(
    declaration: Declaration,
    workspace: Workspace,
    segments: Iterable[str],
    failed: list[CorruptError],
) -> Iterator[Piece]:
    """Read segments one after the other, but for those that another compactor has deleted.

    :param failed: gets why others can't be read.
    """
    for segment in segments:
        try:
            content = _content(workspace, declaration.name, segment)
            piece = None if content is None else read_segment(declaration, segment, content)
        except CorruptError as error:
            failed.append(error)
            continue
        if piece is not None:
            yield piece


def _content(workspace: Workspace, model: str, segment: str) -> bytes | None:
    """A segment's bytes; None when another compactor has deleted it."""
    name = segment_name(model, segment)
    try:
        return workspace.store.read_bytes(name)
    except FileNotFoundError as error:
        with workspace.ledger.read() as session:
            if _compactions(session, model, [segment]):
                return None
        raise CorruptError(
            f"{workspace.store.uri(name)} was there a moment ago and is gone, and the ledger has "
            "no compaction of it: only compaction may delete segments. Restore it from a backup; "
            "the next run goes on without its answers."
        ) from error


# one group


def _compact_group(
    declaration: Declaration, workspace: Workspace, pieces: Sequence[Piece]
) -> Compaction:
    """Write a group's files, say so in the ledger, delete its segments."""
    model, store = declaration.name, workspace.store
    compaction = digest_of([[piece.segment, piece.digest] for piece in pieces])[:16]
    parts: dict[str, list[Any]] = {}
    for piece in pieces:
        for line in piece.lines:
            parts.setdefault(declaration.data.partition.key(line.event_timestamp), []).append(line)
    versions = dict.fromkeys(line.model_version for lines in parts.values() for line in lines)
    kinds, note = kinds_of(declaration, workspace, versions), [piece.segment for piece in pieces]
    served = []
    for key, lines in sorted(parts.items()):
        name = f"{_folder(model, key)}/served-{compaction}.parquet"
        table = table_of(declaration, lines, kinds)
        with _WRITING:
            uri = put_table(store, name, table, {"segments": note})
        served.append(
            ServedRow(model=model, partition=key, compaction=compaction, rows=len(lines), uri=uri)
        )
    if not _commit(workspace, model, pieces, served, compaction):
        _withdraw(workspace, model, compaction, [row.uri for row in served])
        return Compaction(model=model)
    _finish(workspace, model, dict.fromkeys(note, compaction))
    return Compaction(
        model=model,
        segments=len(pieces),
        rows=sum(row.rows for row in served),
        files={row.partition: row.uri for row in served},
        torn=sum(piece.torn for piece in pieces),
    )


def _folder(model: str, partition: str) -> str:
    return f"predictions/model={model}/partition={partition}"


def _commit(
    workspace: Workspace,
    model: str,
    pieces: Sequence[Piece],
    served: Sequence[ServedRow],
    compaction: str,
) -> bool:
    """Record a compaction in one transaction; False when another has some of its segments."""
    rows = [
        SegmentRow(
            model=model,
            segment=piece.segment,
            digest=piece.digest,
            rows=len(piece.lines),
            compaction=compaction,
        )
        for piece in pieces
    ]
    try:
        with workspace.ledger.write() as session:
            records.lock(session, model)
            if _compactions(session, model, [piece.segment for piece in pieces]):
                return False
            session.add_all([*rows, *served])
    except IntegrityError:  # where `lock` locks nothing, the unique keys decide
        return False
    return True


def _withdraw(workspace: Workspace, model: str, compaction: str, uris: Sequence[str]) -> None:
    """Delete the files of a compaction that lost, unless the winner's was just the same."""
    with workspace.ledger.read() as session:
        kept = {row.uri for row in records.served(session, model) if row.compaction == compaction}
    for uri in set(uris) - kept:
        _delete(workspace.store, uri)


def _finish(workspace: Workspace, model: str, known: Mapping[str, str]) -> None:
    """Delete segments that have been compacted, and what other attempts at them left.

    :param known: segment → the compaction that it is in.
    """
    store = workspace.store
    with workspace.ledger.read() as session:
        rows = select(ServedRow.partition).where(
            ServedRow.model == model, ServedRow.compaction.in_(set(known.values()))
        )
        partitions = sorted(set(session.scalars(rows)))
    for partition in partitions:
        _sweep(workspace, model, partition)
    for segment in known:
        _delete(store, segment_name(model, segment))


def _sweep(workspace: Workspace, model: str, partition: str) -> None:
    """Delete files that can't be in the ledger ever: of segments that another compaction has."""
    store = workspace.store
    names = _names(store, _folder(model, partition))
    with workspace.ledger.read() as session:
        own = {row.compaction for row in records.served(session, model, partition)}
    strangers = [
        match for name in names if (match := _FILE.fullmatch(name)) and match[1] not in own
    ]
    for match in strangers:
        uri = store.uri(f"{_folder(model, partition)}/{match[0]}")
        with suppress(FileNotFoundError):  # another compactor has swept it
            segments = footer(store, uri).note["segments"]
            with workspace.ledger.read() as session:
                taken = set(_compactions(session, model, segments).values())
            if taken - {match[1]}:
                _delete(store, uri)


def _delete(store: Store, uri: str) -> None:
    with store.reachable(), suppress(FileNotFoundError):  # another compactor was here
        store.path(uri).unlink()
