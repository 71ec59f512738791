"""Content-addressed artifacts over universal_pathlib: local folders, ``s3://`` and their like.

Three kinds of thing live here, none of which is ever half-written:

- ``objects/``: bytes under their own sha256 (landed files).
- ``documents/``: JSON under its own sha256 (snapshots, reports, verdicts).
- ``tables/``: Parquet under a key made from the digests of what it was computed from, so that a
  second computation finds the first.

A write goes aside and is renamed (local) or is one PUT (object stores).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote

from evergreen.errors import CorruptError, PathError, unavailable

if TYPE_CHECKING:
    import pandas as pd
    from upath import UPath

_CHUNK = 1 << 20
#: A local disk that is full, over its quota, read-only or broken: no mistake of who writes.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


class _DiskError(Exception):
    """What `_NO_ROOM` means, told apart from other errors of a file."""


def digest_of(value: Any) -> str:
    """The sha256 of a JSON value, written canonically."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_stream(stream: IO[bytes]) -> tuple[str, int]:
    """The sha256 and the length of a stream, read in chunks."""
    sha, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        sha.update(chunk)
        size += len(chunk)
    return sha.hexdigest(), size


def check_climb(path: str) -> None:
    """Refuse a name or URI that could mean another place than it seems to say.

    :raises PathError: for ``..`` among its parts, also percent-encoded or behind a backslash, and
        for control characters.
    """
    parts = unquote(path).replace("\\", "/").split("/")
    if ".." in parts or not path.isprintable():
        raise PathError(
            f"{path!r:.200} climbs with .. or holds a control character; allowed is a path that "
            "says where it leads. Correct whatever named it."
        )


@cache
def s3_session() -> Any:
    """What this process makes its clients of S3 from (an ``aiobotocore`` session).

    It reads the description of S3, a megabyte of JSON, for the first client alone; a process that
    is forked finds it read.
    """
    from aiobotocore.session import AioSession

    return AioSession()


class Store:
    """A root below which artifacts are kept.

    :param root: any URI that fsspec knows, or a local path.
    :param options: what its file system needs to be opened (keys, an endpoint); never printed.
        URIs of the same scheme outside the root are opened with them too.
    """

    def __init__(self, root: str, options: Mapping[str, Any] | None = None) -> None:
        self.root = root.rstrip("/")
        self._options = dict(options or {})

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    def path(self, uri: str) -> UPath:
        """The path of a URI, or of a name below the root.

        :raises PathError: when it climbs with ``..``, or holds a control character.
        """
        from upath import UPath

        whole = uri if "://" in uri or uri.startswith("/") else self.uri(uri)
        check_climb(whole)
        scheme = self.root.partition("://")[0]
        options = self._options if whole.startswith(f"{scheme}://") else {}
        if whole.startswith("s3"):  # s3fs remembers listings as long as the process lives
            options = {"session": s3_session(), **options, "use_listings_cache": False}
        path: UPath = UPath(whole, **options)
        return path

    def uri(self, name: str) -> str:
        """The URI of a name below the root.

        :raises PathError: for a name that would not be below it.
        """
        if not name or name.startswith("/") or "://" in name:
            raise PathError(
                f"{name!r:.200} is no name below {self.root}; allowed is a relative one, like "
                "documents/gate/abc.json"
            )
        check_climb(name)
        return f"{self.root}/{name}"

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Name the store's address when it can't be reached, or has no room.

        :raises UnavailableError: then.
        """
        with unavailable("the store", self.root, _DiskError, *_unreachable(self.root)):
            try:
                yield
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise _DiskError(str(error)) from error
                raise

    def exists(self, uri: str) -> bool:
        """Whether there is something at ``uri``."""
        with self.reachable():
            return bool(self.path(uri).exists())

    def read_bytes(self, uri: str) -> bytes:
        """The bytes at ``uri``.

        :raises FileNotFoundError: when nothing is there.
        """
        with self.reachable():
            return bytes(self.path(uri).read_bytes())

    def write(self, name: str, produce: Callable[[Path], None]) -> str:
        """Let ``produce`` write a local file, then make it appear at ``name`` whole.

        :returns: the URI.
        :raises PathError: for a name that would not be below the root.
        """
        with self.reachable():
            target = self.path(self.uri(name))
            if target.protocol in ("", "file", "local"):
                final = Path(target.path)
                final.parent.mkdir(parents=True, exist_ok=True)
                _sweep(final)
                writer = f"{threading.get_ident()}-{os.getpid()}"
                aside = final.with_name(f".{final.name}.aside-{writer}")
                try:
                    produce(aside)
                    aside.replace(final)
                except BaseException:
                    aside.unlink(missing_ok=True)
                    raise
            else:
                with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
                    produce(Path(folder) / "aside")
                    target.fs.put_file(str(Path(folder) / "aside"), target.path)
        return self.uri(name)

    def put_bytes(self, name: str, content: bytes) -> str:
        """Write bytes at ``name``, whole or not at all."""

        def produce(path: Path) -> None:
            path.write_bytes(content)

        return self.write(name, produce)

    def put_object(self, stream: IO[bytes]) -> tuple[str, str, int]:
        """Keep a stream under its sha256; the same bytes are kept once.

        :returns: its URI, sha256 and size in bytes.
        """
        with tempfile.NamedTemporaryFile(prefix="evergreen-") as copy:
            while chunk := stream.read(_CHUNK):
                copy.write(chunk)
            copy.flush()
            copy.seek(0)
            sha, size = digest_of_stream(copy)
            name = f"objects/{sha[:2]}/{sha}"
            if not self.exists(name):
                self.write(name, lambda path: _copy(copy, path))
        return self.uri(name), sha, size

    def put_document(self, kind: str, document: dict[str, Any]) -> tuple[str, str]:
        """Keep a JSON document under its digest.

        :returns: its URI and digest.
        """
        digest = digest_of(document)
        name = f"documents/{kind}/{digest}.json"
        if not self.exists(name):
            self.put_bytes(name, json.dumps(document, sort_keys=True, indent=1).encode())
        return self.uri(name), digest

    def get_document(self, uri: str, digest: str) -> dict[str, Any]:
        """Read a document and check it against its digest.

        :raises CorruptError: when it was changed behind our back.
        """
        document: dict[str, Any] = json.loads(self.read_bytes(uri))
        if (found := digest_of(document)) != digest:
            raise CorruptError(
                f"{uri} hashes to {found[:12]} where {digest[:12]} was written: it was changed. "
                "Restore it from a backup, or clear the task that wrote it to make it anew."
            )
        return document

    def put_table(self, name: str, table: pd.DataFrame) -> str:
        """Write a table as Parquet at ``name``, whole or not at all."""
        return self.write(
            name, lambda path: table.to_parquet(path, index=False, coerce_timestamps="us")
        )

    def get_table(self, uri: str, columns: list[str] | None = None) -> pd.DataFrame:
        """Read a Parquet table, or some of its columns."""
        import pandas as pd

        with self.reachable(), self.path(uri).open("rb") as stream:
            return pd.read_parquet(stream, columns=columns)


def _copy(source: IO[bytes], path: Path) -> None:
    source.seek(0)
    with path.open("wb") as target:
        while chunk := source.read(_CHUNK):
            target.write(chunk)


def _sweep(final: Path) -> None:
    """Remove what a killed writer of the same file left aside."""
    for aside in final.parent.glob(f".{final.name}.aside-*"):
        try:
            os.kill(int(aside.name.rpartition("-")[2]), 0)
        except ProcessLookupError:
            aside.unlink(missing_ok=True)


def _unreachable(root: str) -> tuple[type[Exception], ...]:
    """What "not reachable" looks like: sockets, permissions and, for S3, botocore's own."""
    if not root.startswith("s3"):
        return (ConnectionError, TimeoutError, PermissionError, NotADirectoryError, FileExistsError)
    from botocore.exceptions import BotoCoreError, ClientError

    return (ConnectionError, TimeoutError, PermissionError, BotoCoreError, ClientError)
