"""The landing folder: which of its files are partitions, and what tells a changed one, unread."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration, Period
from evergreen.lifecycle.rows import LABELS, MAIN
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    from upath import UPath


@dataclass(frozen=True)
class Landed:
    """A file found in the landing folder."""

    key: str
    uri: str
    path: UPath
    fingerprint: str


def list_landed(
    declaration: Declaration, workspace: Workspace, table: str
) -> dict[str, dict[str, Landed]]:
    """The landed files of a table's sources: source → partition key → file.

    :param table: `MAIN` or `LABELS`.
    :raises UnavailableError: when the landing folder can't be reached.
    """
    data = declaration.data
    uris = {MAIN: data.uri, **{name: source.uri for name, source in data.sources.items()}}
    if table == LABELS:
        uris = {LABELS: str(data.label.uri)}
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
