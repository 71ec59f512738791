"""One holder of a name at a time, among all processes that share a ledger.

A lock file beside a SQLite ledger, an advisory lock of the session on PostgreSQL: either is gone
with the process that held it, however that ended.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import InterfaceError, OperationalError

from evergreen.errors import UnavailableError, unavailable

#: Seconds between two looks at a lock file: flock waits without an end, or not at all.
_POLL = 0.05
_NOT_AVAILABLE = "55P03"  # PostgreSQL's lock_not_available


@contextmanager
def alone(engine: Engine, address: str, name: str, patience: float) -> Iterator[None]:
    """Hold ``name`` for the block.

    :param address: the ledger's, without credentials.
    :param patience: seconds to wait for another holder.
    :raises UnavailableError: when another process holds it longer, or the lock was lost on the
        way; a retry may find it free.
    :raises NotImplementedError: for a database that is neither SQLite nor PostgreSQL.
    """
    digest = hashlib.sha256(name.encode()).digest()
    database = engine.url.database
    if engine.dialect.name == "postgresql":
        with _advisory(engine, address, name, int.from_bytes(digest[:8], signed=True), patience):
            yield
    elif engine.dialect.name == "sqlite" and database:
        with _file(Path(f"{database}.{digest.hex()[:16]}.lock"), name, patience):
            yield
    else:
        raise NotImplementedError(f"{engine.dialect.name} has no lock that Evergreen knows")


@contextmanager
def _file(path: Path, name: str, patience: float) -> Iterator[None]:
    deadline = time.monotonic() + patience
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise _late(name, patience) from None
                time.sleep(_POLL)  # between looks, until the deadline
        yield


@contextmanager
def _advisory(engine: Engine, address: str, name: str, key: int, patience: float) -> Iterator[None]:
    reached = partial(unavailable, "the ledger", address, OperationalError, InterfaceError)
    with reached():
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with connection:
        try:
            with reached():
                _lock(connection, name, key, patience)
            yield
            with reached():  # fails when the server was restarted: it has let others in
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})
        finally:
            connection.invalidate()  # what it was set to, and a lock still held, end with it


def _lock(connection: Connection, name: str, key: int, patience: float) -> None:
    milliseconds = {"value": str(max(1, int(patience * 1000)))}
    connection.execute(text("SELECT set_config('lock_timeout', :value, false)"), milliseconds)
    try:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
    except OperationalError as error:
        if getattr(error.orig, "pgcode", None) != _NOT_AVAILABLE:  # of psycopg2
            raise
        raise _late(name, patience) from error


def _late(name: str, patience: float) -> UnavailableError:
    return UnavailableError(
        f"another process has held {name!r} for more than {patience:g} s. Look at what runs for "
        "this model; the task is retried."
    )
