"""The landing folder: which of its files are partitions, and what tells a changed one, unread.

Who lands files need not be who runs Evergreen: a file that is a link out of the landing folder is
refused, since it would make a worker read what only the worker may. Where a declaration may look
at all is the deployment's to say, by ``EVERGREEN_LANDING_ROOTS``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration, Period
from evergreen.errors import DeclarationError, PartitionError
from evergreen.lifecycle.rows import LABELS, MAIN
from evergreen.store import check_climb
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    from upath import UPath

#: URIs or absolute folders, separated by commas. When set, data lands below one of them.
ROOTS = "EVERGREEN_LANDING_ROOTS"
_LOCAL = ("", "file", "local")


@dataclass(frozen=True)
class Landed:
    """A file found in the landing folder.

    :ivar place: where the listing found it; to be opened by `path`.
    :ivar folder: the landing folder.
    """

    key: str
    uri: str
    place: UPath
    folder: UPath
    fingerprint: str

    @property
    def path(self) -> UPath:
        """What to open.

        :raises PartitionError: when it is a link that leads out of the landing folder.
        """
        if self.place.protocol in _LOCAL:
            found, folder = Path(self.place.path).resolve(), Path(self.folder.path).resolve()
            if not found.is_relative_to(folder):
                raise PartitionError(
                    f"{self.uri} is a link that leads out of {folder}; allowed are files that lie "
                    "there. Land the file itself."
                )
        return self.place


def list_landed(
    declaration: Declaration, workspace: Workspace, table: str
) -> dict[str, dict[str, Landed]]:
    """The landed files of a table's sources: source → partition key → file.

    :param table: `MAIN` or `LABELS`.
    :raises DeclarationError: for a URI out of the roots that the deployment allows.
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
    _check_root(declaration, absolute)
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
                place = workspace.store.path(uri)
                found[key] = Landed(key, uri, place, root, _fingerprint(info))
    return found


def _check_root(declaration: Declaration, uri: str) -> None:
    """Refuse a URI out of the declared roots, or one whose folder climbs or is a link out of them.

    :raises DeclarationError: naming the roots. Without any, whoever writes the declaration decides.
    """
    check_climb(uri)
    roots = [root.strip() for root in os.environ.get(ROOTS, "").split(",") if root.strip()]
    if roots and not any(_plain(uri).startswith(f"{_plain(root)}/") for root in roots):
        raise DeclarationError(
            f"{declaration.folder / 'model.yaml'}: data lands in {uri}; this deployment allows "
            f"{', '.join(roots)}. Land it there, or have whoever runs the deployment add the folder "
            f"to {ROOTS}."
        )


def _plain(uri: str) -> str:
    """A URI to compare: a local one is where its links lead."""
    local = uri.removeprefix("file://")
    return os.path.realpath(local) if local.startswith("/") else uri.rstrip("/")


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
