"""The ledger migrates itself, says where it is, and knows no clock but the database's."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from evergreen.errors import UnavailableError
from evergreen.ledger import Ledger, database, records
from evergreen.ledger.tables import Table

MOMENT = datetime(2013, 2, 1, tzinfo=UTC)


def test_the_migrations_give_what_the_tables_say(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    with ledger.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_the_newest_migration_is_the_one_looked_for() -> None:
    migrations = ScriptDirectory(str(Path(database.__file__).with_name("migrations")))
    assert migrations.get_current_head() == database.HEAD


def test_many_open_it_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda _: Ledger(url).engine, range(8)))) == 8


def test_times_come_back_in_utc(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    elsewhere = MOMENT.astimezone(timezone(timedelta(hours=-5)))
    with ledger.write() as session:
        records.raise_signal(session, "m", "manual", "k", elsewhere, {})
    with ledger.read() as session:
        assert records.open_signals(session, "m")[0].as_of == MOMENT
    with pytest.raises(Exception, match="needs a zone"), ledger.write() as session:
        records.raise_signal(session, "m", "manual", "naive", datetime(2013, 1, 1), {})  # noqa: DTZ001


def test_a_failed_transaction_writes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    with pytest.raises(ZeroDivisionError), ledger.write() as session:
        assert records.raise_signal(session, "m", "manual", "k", MOMENT, {}).id / 0
    with ledger.read() as session:
        assert not records.open_signals(session, "m")


def test_an_unreachable_ledger_is_named_without_its_password() -> None:
    ledger = Ledger("postgresql+psycopg2://me:secret@127.0.0.1:1/none")
    with pytest.raises(UnavailableError, match=r"the ledger at .*127\.0\.0\.1:1") as caught:
        _ = ledger.engine
    assert "secret" not in str(caught.value)


def test_every_table_takes_a_row_whose_moment_the_database_sets(tmp_path: Path) -> None:
    """A migration's default that the database doesn't know shows only when a row is written."""
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    with ledger.engine.connect() as connection:
        for table in Table.metadata.tables.values():
            default = next(
                column["default"]
                for column in inspect(connection).get_columns(table.name)
                if column["name"] == "recorded_at"
            )
            assert connection.execute(text(f"SELECT {default}")).scalar(), table.name
