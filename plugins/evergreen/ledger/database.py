"""The ledger's connection: any SQLAlchemy URL, SQLite by default, migrated when first opened."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from evergreen.errors import unavailable
from evergreen.ledger import numbers
from evergreen.ledger.locking import alone

HEAD = "0004"
_LOCK = 727_418_001  # an advisory lock's key on PostgreSQL: any number nobody else uses


class Ledger:
    """The record of what arrived and what was decided.

    :param url: a SQLAlchemy URL.
    """

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        if self.url.drivername == "postgresql":  # which driver that means is SQLAlchemy's to change
            self.url = self.url.set(drivername="postgresql+psycopg2")

    def __repr__(self) -> str:
        return f"Ledger({self.address!r})"

    @property
    def address(self) -> str:
        """The URL without its password, and without options, which may hold another."""
        return self.url.set(query={}).render_as_string(hide_password=True)

    @cached_property
    def engine(self) -> Engine:
        """The engine, over a schema that is up to date."""
        if self.url.get_backend_name() == "sqlite" and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(
            self.url,
            pool_pre_ping=True,
            json_serializer=numbers.dumps,
            json_deserializer=numbers.loads,
        )
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        with unavailable("the ledger", self.address, OperationalError, InterfaceError, OSError):
            self._migrate(engine)
        return engine

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads."""
        with self._session(write=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction: all of it is written at the end, or nothing."""
        with self._session(write=True) as session:
            yield session

    @contextmanager
    def alone(self, name: str, patience: float = 900.0) -> Iterator[None]:
        """Hold ``name`` for the block: one holder at a time, among all that share this ledger.

        :param patience: seconds to wait for another holder.
        :raises UnavailableError: when it is held for longer, or the ledger can't be reached.
        """
        with alone(self.engine, self.address, name, patience):
            yield

    @contextmanager
    def _session(self, *, write: bool) -> Iterator[Session]:
        engine = self.engine.execution_options(evergreen_write=write)
        with (
            unavailable("the ledger", self.address, OperationalError, InterfaceError),
            Session(engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def _migrate(self, engine: Engine) -> None:
        if _version(engine) == HEAD:
            return
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        with self._alone(engine) as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def _alone(self, engine: Engine) -> Iterator[Connection]:
        """One process migrates; the others wait for it."""
        if engine.dialect.name == "sqlite" and self.url.database:
            with Path(f"{self.url.database}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                with engine.begin() as connection:
                    yield connection
        else:
            with engine.begin() as connection:
                if engine.dialect.name == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
                yield connection


def _version(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        try:
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        except DBAPIError:
            return None


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say, see _begin_sqlite
    for pragma in ("journal_mode=WAL", "busy_timeout=30000", "foreign_keys=ON", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: upgrading a read lock later can fail without waiting.
    write = connection.get_execution_options().get("evergreen_write", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
