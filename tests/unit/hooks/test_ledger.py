"""The ledger's Connection: the pieces of a URL survive, and "Test" connects without migrating."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, inspect, make_url, text

from evergreen.errors import DeclarationError
from evergreen.hooks.ledger import LedgerHook
from evergreen.ledger import Ledger
from evergreen.ledger.database import HEAD

# What a form takes: no surrogates, which no URL can spell, and no NUL.
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


def hook(monkeypatch: pytest.MonkeyPatch, **connection: Any) -> LedgerHook:
    given = {"conn_type": "evergreen_ledger", **connection}
    monkeypatch.setenv("AIRFLOW_CONN_EVERGREEN_LEDGER", json.dumps(given))
    return LedgerHook()


@settings(deadline=None)  # the first example imports
@given(login=WORDS, password=WORDS, sslmode=WORDS)
def test_every_piece_survives(login: str, password: str, sslmode: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        asked = hook(
            patch,
            host="db.example.com",
            port=5432,
            schema="evergreen",
            login=login,
            password=password,
            extra={"dialect": "postgresql+psycopg2", "sslmode": sslmode},
        )
        url = make_url(asked.url())
    assert (url.drivername, url.host, url.port) == ("postgresql+psycopg2", "db.example.com", 5432)
    assert (url.username, url.password, url.database) == (login, password, "evergreen")
    assert dict(url.query) == {"sslmode": sslmode}


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        ("postgres://me:p%40ss%2F@db:5432/e?sslmode=require", "postgresql://me:p%40ss%2F@db:5432/e?sslmode=require"),
        ("postgresql+psycopg2://me@db/e", "postgresql+psycopg2://me@db/e"),
        ("sqlite:////srv/ledger.db", "sqlite:////srv/ledger.db"),
        ('{"conn_type": "sqlite", "host": "/srv/ledger.db"}', "sqlite:////srv/ledger.db"),
    ],
)  # fmt: skip
def test_a_database_of_another_type_is_one_too(
    connection: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_EVERGREEN_LEDGER", connection)
    assert LedgerHook().url() == expected


def test_the_ledger_does_not_show_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = hook(monkeypatch, host="db", login="me", password="planted/secret").get_conn()
    assert ledger.url.password == "planted/secret"
    assert repr(ledger) == "Ledger('postgresql+psycopg2://me:***@db')"


@pytest.mark.parametrize(
    ("connection", "message"),
    [
        ({"extra": {"dialect": "oracel"}}, "can't speak.*like postgresql"),
        ({"conn_type": "generic", "host": "postgresql://db/e"}, "dialect is 'generic'"),
        ({"extra": {"sslpassword": "planted"}}, "extra holds sslpassword"),
    ],
)
def test_what_it_can_not_use_is_said(
    connection: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hook(monkeypatch, **connection)
    with pytest.raises(DeclarationError, match=message) as caught:
        asked.url()
    assert "planted" not in str(caught.value)
    assert asked.test_connection() == (False, str(caught.value))


def sqlite(monkeypatch: pytest.MonkeyPatch, path: Path) -> LedgerHook:
    return hook(monkeypatch, schema=str(path), extra={"dialect": "sqlite"})


def test_nothing_is_made_by_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    passed, said = sqlite(monkeypatch, path).test_connection()
    assert (passed, "the first task makes it" in said) == (True, True)
    assert not path.exists()


def test_an_empty_database_stays_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    path.touch()
    passed, said = sqlite(monkeypatch, path).test_connection()
    assert (passed, "no tables yet" in said) == (True, True)
    assert inspect(create_engine(f"sqlite:///{path}")).get_table_names() == []


@pytest.mark.parametrize(
    ("revision", "passes", "words"),
    [
        (HEAD, True, "up to date"),
        ("0001", True, f"migrates it to {HEAD}"),
        ("9999", False, "doesn't know"),
    ],
)
def test_the_revision_is_said(
    revision: str, passes: bool, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(f"sqlite:///{path}").engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :to"), {"to": revision})
    passed, said = sqlite(monkeypatch, path).test_connection()
    assert passed is passes
    assert words in said
    with create_engine(f"sqlite:///{path}").connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == revision


def test_a_file_of_something_else_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    path.write_text("not a database, and long enough to be taken for one" * 20)
    passed, said = sqlite(monkeypatch, path).test_connection()
    assert not passed
    assert "file is not a database" in said
