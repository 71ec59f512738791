"""The ledger's Connection: the pieces of a SQLAlchemy URL.

``evergreen_ledger`` has a field for the dialect; a Connection of another type (``postgres``,
``mysql``, ``sqlite``) says it by its type. Further fields of ``extra`` become the URL's query.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from evergreen.hooks.base import PATIENCE, ConnectionHook, texts
from evergreen.ledger import Ledger

if TYPE_CHECKING:
    from airflow.sdk import Connection
    from sqlalchemy import URL
    from sqlalchemy import Connection as Session

_SECRET = re.compile("password|passwd|passphrase|secret|token")
#: Airflow's word for a database where SQLAlchemy has another.
_DIALECTS = {"postgres": "postgresql", "evergreen_ledger": "postgresql"}


class LedgerHook(ConnectionHook):
    """The record of what arrived and what was decided.

    :param conn_id: the Connection.
    """

    conn_type: ClassVar[str] = "evergreen_ledger"
    default_conn_name: ClassVar[str] = "evergreen_ledger"
    hook_name: ClassVar[str] = "Evergreen ledger"

    def get_conn(self) -> Ledger:
        """The ledger; it is connected to, and migrated, when it is first used."""
        return Ledger(self.url())

    def url(self) -> str:
        """The SQLAlchemy URL, with its password: for `Ledger`, which doesn't show it.

        :raises DeclarationError: when it says no dialect that SQLAlchemy knows, or holds a secret
            where it would be shown.
        """
        return self._url().render_as_string(hide_password=False)

    def _url(self) -> URL:
        from sqlalchemy import URL
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError

        connection = self.connection()
        fields = texts(connection)
        dialect = fields.pop("dialect", "") or _dialect(connection)
        self._refuse_secrets(fields)
        try:
            url = URL.create(
                dialect,
                # Without any login SQLAlchemy would forget the password.
                username=connection.login or ("" if connection.password else None),
                password=connection.password or None,
                host=connection.host or None,
                port=connection.port or None,
                database=connection.schema or None,
                query=fields,
            )
            url.get_dialect()
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise self.wrong(
                f"dialect is {dialect!r}, which SQLAlchemy can't speak ({error}). Write one like "
                "postgresql+psycopg2, and install its driver."
            ) from None
        return _sqlite(url) if url.get_backend_name() == "sqlite" else url

    def _refuse_secrets(self, fields: dict[str, str]) -> None:
        """A URL's query is shown wherever its address is."""
        secret = [name for name in fields if _SECRET.search(name.lower())]
        if secret:
            self.hide(*(fields[name] for name in secret))
            raise self.wrong(
                f"extra holds {', '.join(sorted(secret))}, which would be shown in the ledger's "
                "address. A password belongs into the password field, a key into a file that a "
                "field names."
            )

    def ask(self) -> str:
        """Connect, and say which revision the schema has; nothing is migrated."""
        from sqlalchemy import NullPool, create_engine

        url = self._url()
        address = url.render_as_string(hide_password=True)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
            return f"There is no file at {address} yet; the first task makes it."
        engine = create_engine(url, poolclass=NullPool, connect_args=_bounds(url))
        with engine.connect() as connection:
            return f"Connected to {address}. {_revision(connection)}"


def _dialect(connection: Connection) -> str:
    kind = connection.conn_type or ""
    return _DIALECTS.get(kind, kind)


def _sqlite(url: URL) -> URL:
    """A file's path may stand in any field that the form shows."""
    from sqlalchemy import URL

    return URL.create(url.drivername, database=url.database or url.host, query=url.query)


def _bounds(url: URL) -> dict[str, Any]:
    """What makes a driver give up soon, where we know its words."""
    if url.get_driver_name() in {"psycopg", "psycopg2"}:
        patience = int(PATIENCE * 1000)
        return {
            "connect_timeout": int(PATIENCE),
            "options": f"-c statement_timeout={patience} -c lock_timeout={patience}",
        }
    return {"timeout": PATIENCE} if url.get_backend_name() == "sqlite" else {}


def _revision(connection: Session) -> str:
    """Where the schema is, in words.

    :raises ValueError: when it is newer than this version of Evergreen.
    """
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    from evergreen.ledger import database

    found = MigrationContext.configure(connection).get_current_revision()
    if found == database.HEAD:
        return f"Its schema is up to date (revision {found})."
    if found is None:
        return f"It has no tables yet; the first task makes them (revision {database.HEAD})."
    known = ScriptDirectory(str(Path(database.__file__).with_name("migrations")))
    if found not in {script.revision for script in known.walk_revisions()}:
        raise ValueError(
            f"its schema is at revision {found}, which this version of Evergreen doesn't know "
            f"(its newest is {database.HEAD}). Install the version that migrated it."
        )
    return f"Its schema is at revision {found}; the next task migrates it to {database.HEAD}."
