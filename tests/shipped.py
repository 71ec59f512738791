"""Segments of a replica's log as they come to the store, and what compaction made of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from evergreen.declaration import Declaration
from evergreen.ledger import records
from evergreen.lifecycle.servedlines import segment_name
from evergreen.lifecycle.servedlog import read_served
from evergreen.workspace import Workspace
from tests.builders import declare

START = datetime(2013, 1, 1, tzinfo=UTC)
NAMES = count()


def answer(number: int, **fields: Any) -> dict[str, Any]:
    """A replica's line about a row; three of them to an hour of event time."""
    moment = START + timedelta(minutes=20 * number)
    return {
        "request_id": f"r{number // 2}",
        "request_row": number % 2,
        "served_at": moment.isoformat(timespec="microseconds"),
        "replica": "one",
        "route": "predict",
        "role": "champion",
        "model_version": "1",
        "event_timestamp": moment.isoformat(timespec="microseconds"),
        "entities": {"origin": f"o{number}"},
        "features": {"x": number / 4, "kind": "a"},
        "online": ["x"],
        "slices": {},
        "prediction": 0.25,
        "fallback": None,
        "feature_age": 1.5,
        **fields,
    }


def ship(
    workspace: Workspace,
    model: str,
    segment: str,
    lines: Sequence[Mapping[str, Any]],
    torn: bytes = b"",
) -> None:
    content = b"".join(json.dumps(each).encode() + b"\n" for each in lines)
    workspace.store.put_bytes(segment_name(model, segment), content + torn)


def segments_left(workspace: Workspace, model: str) -> list[str]:
    folder = workspace.home / "store" / "served" / model / "segments"
    return sorted(path.name for path in folder.glob("*"))


def files_of(workspace: Workspace, model: str) -> set[str]:
    """Compacted files that are there, whether or not the ledger names them."""
    folder = workspace.home / "store" / "predictions" / f"model={model}"
    return {f"file://{path}" for path in folder.rglob("*") if path.is_file()}


def files_known(workspace: Workspace, model: str) -> set[str]:
    with workspace.ledger.read() as session:
        return {row.uri for row in records.served(session, model)}


def rows_of(
    declaration: Declaration, workspace: Workspace, **asked: Any
) -> Counter[tuple[str, int]]:
    rows = read_served(declaration, workspace, **asked)
    return Counter(zip(rows["request_id"], rows["request_row"].astype(int), strict=True))


def keys(lines: Sequence[Mapping[str, Any]]) -> Counter[tuple[str, int]]:
    return Counter((each["request_id"], each["request_row"]) for each in lines)


def fresh(shared: Workspace, **sections: Any) -> Declaration:
    return declare(shared.home, name=f"m{next(NAMES)}", **sections)
