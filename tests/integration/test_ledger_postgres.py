"""The ledger on PostgreSQL: what SQLite gives by having one writer must hold among many."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import event, func, inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from evergreen.errors import UnavailableError
from evergreen.hooks.ledger import LedgerHook
from evergreen.ledger import Ledger, database, records
from evergreen.ledger.database import HEAD
from evergreen.ledger.tables import PartitionRow, PromotionRow, SignalRow, Table
from tests.integration.services import PostgresService, postgres

pytestmark = pytest.mark.integration

MOMENT = datetime(2013, 2, 1, 12, 30, 15, 123456, tzinfo=UTC)
MODEL = "flight_delay"
LONGEST_ID = f"{'d' * 250}/{'r' * 250}"  # Airflow's bounds of a DAG's id and a run's
#: Where "dag_id/run_id" is kept, or a key that holds it.
RUNS = [
    *("decisions.run_id", "verdicts.run_id", "promotions.run_id", "quarantines.run_id"),
    *("drills.run_id", "scores.run_id", "answers.run_id", "signals.key"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresService]:
    with postgres() as service:
        yield service


@pytest.fixture
def url(server: PostgresService, request: pytest.FixtureRequest) -> str:
    """An empty database of the test's own."""
    name = "".join(c if c.isalnum() else "_" for c in request.node.name).lower()
    return server.create(name[:50])


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    found = Ledger(url)
    yield found
    found.engine.dispose()


def start(url: str, code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own that runs ``code`` with ``ledger`` at hand, once told to go."""
    head = """
    import json, os, sys
    from datetime import UTC, datetime
    from evergreen.ledger import Ledger, records
    MOMENT = datetime(2013, 2, 1, tzinfo=UTC)
    ledger = Ledger(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    """
    program = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", program, url, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def say(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def together(url: str, code: str, count: int) -> list[Any]:
    """Run ``code`` in processes that begin at the same moment; what each printed last."""
    processes = [start(url, code, str(number)) for number in range(count)]
    try:
        assert [say(process) for process in processes] == ["ready"] * count
        for process in processes:
            go(process)
        answers = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (_, error) in zip(processes, answers, strict=True):
        assert process.returncode == 0, error
    return [json.loads(out.splitlines()[-1]) for out, _ in answers]


def promotion(position: int, run_id: str) -> PromotionRow:
    return PromotionRow(
        model=MODEL,
        position=position,
        run_id=run_id,
        version=run_id[-5:],
        kind="promote",
        reason="better",
        as_of=MOMENT,
        mlflow_run="m",
        model_uri="u",
        snapshot_uri="s",
        snapshot_digest="d",
        trained_through=MOMENT,
        origin={},
    )


def count(ledger: Ledger, table: type[Table]) -> int:
    with ledger.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


@contextmanager
def after_looking(parties: int) -> Iterator[None]:
    """Let sessions write only once all of them have looked."""
    barrier = threading.Barrier(parties)
    seen = threading.local()

    def wait(session: Session, *_: Any) -> None:
        if session.new and not getattr(seen, "waited", False):
            seen.waited = True
            barrier.wait(20)

    event.listen(Session, "before_flush", wait)
    try:
        yield
    finally:
        event.remove(Session, "before_flush", wait)


def at_once(work: Callable[[int], Any], workers: int) -> list[Any]:
    with after_looking(workers), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, range(workers)))


def test_four_processes_migrate_it_from_nothing(url: str) -> None:
    code = """
    with ledger.engine.connect() as connection:
        from sqlalchemy import text
        versions = connection.execute(text("SELECT version_num FROM alembic_version")).scalars()
        print(json.dumps(list(versions)))
    """
    assert together(url, code, 4) == [[HEAD]] * 4
    with Ledger(url).engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []


def test_it_can_be_taken_back(ledger: Ledger) -> None:
    """Each migration's way down is SQL that this database knows too."""
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).with_name("migrations")))
    for to in ("base", "head"):
        with ledger.engine.begin() as connection:
            config.attributes["connection"] = connection
            (command.downgrade if to == "base" else command.upgrade)(config, to)
    with ledger.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_of_two_promotions_over_one_champion_one_is_written(ledger: Ledger) -> None:
    def promote(number: int) -> str:
        try:
            with ledger.write() as session:
                live = records.champion(session, MODEL)
                session.add(promotion((live.position if live else 0) + 1, f"run-{number}"))
        except IntegrityError:
            return "lost"
        return "won"

    assert sorted(at_once(promote, 2)) == ["lost", "won"]
    assert count(ledger, PromotionRow) == 1


def test_a_row_put_twice_at_once_is_one(ledger: Ledger) -> None:
    def put(number: int) -> tuple[int, int]:
        with ledger.write() as session:
            asked = records.raise_signal(session, MODEL, "manual", "k", MOMENT, {"by": number})
            mine = records.raise_signal(session, MODEL, "manual", f"own-{number}", MOMENT, {})
            return asked.id, mine.id

    found = at_once(put, 2)
    assert found[0][0] == found[1][0]
    assert count(ledger, SignalRow) == 3, "what the loser wrote besides was lost, or doubled"


def test_the_same_rows_from_four_processes_are_there_once(url: str) -> None:
    Ledger(url).engine.dispose()
    code = """
    ids = []
    for number in range(40):
        with ledger.write() as session:
            ids.append(records.raise_signal(session, "m", "manual", str(number), MOMENT, {}).id)
    print(json.dumps(ids))
    """
    first, *others = together(url, code, 4)
    assert len(set(first)) == 40
    assert others == [first] * 3


def test_a_killed_writer_leaves_nothing(ledger: Ledger) -> None:
    url = ledger.url.render_as_string(hide_password=False)
    ledger.engine.dispose()
    process = start(
        url,
        f"""
        with ledger.write() as session:
            records.lock(session, {MODEL!r})
            records.raise_signal(session, {MODEL!r}, "manual", "k", MOMENT, {{}})
            print("written", flush=True)
            sys.stdin.readline()
        """,
    )
    try:
        assert say(process) == "ready"
        go(process)
        assert say(process) == "written"
        assert count(ledger, SignalRow) == 0, "it was read before it was written"
    finally:
        process.kill()
        process.wait()
    with ledger.write() as session:
        session.execute(text("SET LOCAL statement_timeout = '10s'"))
        records.lock(session, MODEL)  # the killed one's went with it
        assert records.raise_signal(session, MODEL, "manual", "k", MOMENT, {}).id
    assert count(ledger, SignalRow) == 1


def test_decisions_on_one_model_wait_for_each_other(ledger: Ledger) -> None:
    entered, order = threading.Event(), []

    def first() -> None:
        with ledger.write() as session:
            records.lock(session, MODEL)
            entered.set()
            time.sleep(0.3)  # as long as it takes the other to come to the lock
            order.append("first")

    def second() -> None:
        assert entered.wait(10)
        with ledger.write() as session:
            records.lock(session, "another model")
            order.append("another")
            records.lock(session, MODEL)
            order.append("second")

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(first), pool.submit(second)]:
            each.result(20)
    assert order == ["another", "first", "second"]


def test_readers_do_not_wait_for_a_writer(ledger: Ledger) -> None:
    with ledger.write() as session:
        records.raise_signal(session, MODEL, "manual", "before", MOMENT, {})
    with ledger.write() as writing:
        records.raise_signal(writing, MODEL, "manual", "during", MOMENT, {})
        with ledger.read() as session:
            session.execute(text("SET LOCAL statement_timeout = '5s'"))
            assert [row.key for row in records.open_signals(session, MODEL)] == ["before"]
    assert count(ledger, SignalRow) == 2


def test_times_come_back_in_utc_whatever_the_databases_zone(ledger: Ledger) -> None:
    with ledger.engine.begin() as connection:
        name = connection.dialect.identifier_preparer.quote(ledger.url.database or "")
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET timezone TO 'America/New_York'")
    ledger.engine.dispose()
    elsewhere = MOMENT.astimezone(timezone(timedelta(hours=5, minutes=45)))
    with ledger.write() as session:
        records.raise_signal(session, MODEL, "manual", "k", elsewhere, {})
    with ledger.read() as session:
        zone = session.scalar(text("SHOW timezone"))
        (row,) = records.open_signals(session, MODEL)
        within = session.scalars(select(SignalRow.id).where(SignalRow.as_of <= elsewhere)).all()
    assert zone == "America/New_York"
    assert (row.as_of, row.as_of.utcoffset()) == (MOMENT, timedelta(0))
    assert row.recorded_at.utcoffset() == timedelta(0)
    assert within == [row.id]


def test_json_comes_back_as_it_was(ledger: Ledger) -> None:
    evidence = {
        "run_id": "manual__é",
        "nested": [{"a": None, "b": [True, 1.5e-300, 2**62]}, "\u2028 \U0001f600 '\"\\ %s :x"],
        "": {},
    }
    with ledger.write() as session:
        records.raise_signal(session, MODEL, "new_data", "2013-01/1", MOMENT, evidence)
        session.add(
            PartitionRow(
                model=MODEL, source="data", key="2013-01", revision=1, start=MOMENT, end=MOMENT,
                digest="d", rows=1, late=False, files={"a": {"rows": 1}}, maturity={},
            )
        )  # fmt: skip
    with ledger.read() as session:
        assert records.open_signals(session, MODEL)[0].evidence == evidence
        found = records.registered_in(session, MODEL, "manual__é")
        assert [row.key for row in found] == ["2013-01"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_comes_back_as_from_sqlite(number: float, ledger: Ledger) -> None:
    """A report's interval may have no bound; SQLite keeps it."""
    with ledger.write() as session:
        records.raise_signal(session, MODEL, "drift", repr(number), MOMENT, {"high": number})
    with ledger.read() as session:
        found = records.open_signals(session, MODEL)
    (row,) = (row for row in found if row.key == repr(number))
    assert repr(row.evidence["high"]) == repr(number)


def test_every_table_takes_a_row_whose_moment_the_database_sets(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        for table in Table.metadata.tables.values():
            (column,) = [
                it
                for it in inspect(connection).get_columns(table.name)
                if it["name"] == "recorded_at"
            ]
            moment = connection.execute(text(f"SELECT {column['default']}")).scalar()
            assert isinstance(moment, datetime), table.name
            assert moment.tzinfo is not None, table.name


def test_a_failed_transaction_writes_nothing(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError), ledger.write() as session:
        assert records.raise_signal(session, MODEL, "manual", "k", MOMENT, {}).id / 0
    assert count(ledger, SignalRow) == 0


@pytest.mark.parametrize("column", RUNS)
def test_the_longest_run_fits(column: str) -> None:
    table, name = column.split(".")
    length = getattr(Table.metadata.tables[table].columns[name].type, "length", None)
    assert length is None or length >= len(LONGEST_ID)


def test_the_longest_run_is_promoted(ledger: Ledger) -> None:
    with ledger.write() as session:
        session.add(promotion(1, LONGEST_ID))
    with ledger.read() as session:
        assert records.promotion_of(session, MODEL, LONGEST_ID) is not None


def test_it_is_found_again_after_a_restart(server: PostgresService, ledger: Ledger) -> None:
    with ledger.write() as session:
        records.raise_signal(session, MODEL, "manual", "k", MOMENT, {})
    server.stop()
    try:
        with pytest.raises(UnavailableError, match="the ledger at") as caught:
            count(ledger, SignalRow)
        assert str(ledger.url.password) not in str(caught.value)
    finally:
        server.start()
    assert count(ledger, SignalRow) == 1


@pytest.mark.parametrize("password", ["", "another"])
def test_the_form_tests_it(password: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Ledger(url).url
    given = {
        "conn_type": "evergreen_ledger",
        "host": place.host,
        "port": place.port,
        "schema": place.database,
        "login": place.username,
        "password": password or place.password,
        "extra": {"sslmode": "disable"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_EVERGREEN_LEDGER", json.dumps(given))
    passed, said = LedgerHook().test_connection()
    assert passed is not bool(password)
    assert ("no tables yet" if passed else "password authentication failed") in said
    assert str(place.password) not in said
