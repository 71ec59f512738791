"""Connections become a workspace; what has none comes from the environment."""

import json
import os
from pathlib import Path

import pytest
from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowFailException

from evergreen.errors import DeclarationError
from evergreen.hooks.workspace import WorkspaceHook, workspace_of
from evergreen.lifecycle import asking
from tests.builders import declare

CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
TOKEN = "MLFLOW_TRACKING_TOKEN"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))
    for name in (*CREDENTIALS, TOKEN, asking.KEY):
        monkeypatch.setenv(name, "")


def test_without_connections_everything_is_embedded(tmp_path: Path) -> None:
    workspace = WorkspaceHook().get_conn()
    assert workspace.ledger.address == f"sqlite:///{tmp_path}/ledger.db"
    assert workspace.store.root == f"file://{tmp_path}/store"
    assert workspace.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_connections_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_EVERGREEN_LEDGER", "postgres://me:secret@db:5432/evergreen")
    monkeypatch.setenv(
        "AIRFLOW_CONN_EVERGREEN_STORE", '{"conn_type": "generic", "host": "s3://bucket/e"}'
    )
    workspace = WorkspaceHook().get_conn()
    assert workspace.ledger.address == "postgresql+psycopg2://me:***@db:5432/evergreen"
    assert workspace.store.root == "s3://bucket/e"


@pytest.mark.parametrize(
    "connection",
    [
        "https://me:secret@mlflow.example.com:5000",
        '{"conn_type": "generic", "host": "https://mlflow.example.com:5000", "login": "me", "password": "secret"}',
    ],
)
def test_mlflow_keeps_its_scheme_and_port_and_hides_its_password(
    connection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_EVERGREEN_MLFLOW", connection)
    assert WorkspaceHook().get_conn().tracking_uri == "https://mlflow.example.com:5000"
    assert [os.environ[name] for name in CREDENTIALS] == ["me", "secret"]


def test_an_address_that_says_not_how_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_EVERGREEN_MLFLOW", '{"conn_type": "generic", "host": "mlflow"}'
    )
    workspace = WorkspaceHook().get_conn()
    with pytest.raises(DeclarationError, match="Write it whole, like https://"):
        str(workspace.tracking_uri)


def test_the_types_of_their_own_win_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "LEDGER": {"conn_type": "evergreen_ledger", "host": "db", "schema": "e", "login": "me"},
        "STORE": {"conn_type": "evergreen_store", "host": f"file://{tmp_path}/artifacts"},
        "MLFLOW": {"conn_type": "evergreen_mlflow", "host": "http://mlflow:5000/"},
        "SERVING": {"conn_type": "evergreen_serving", "password": "a key"},
    }
    for name, connection in given.items():
        monkeypatch.setenv(f"AIRFLOW_CONN_EVERGREEN_{name}", json.dumps(connection))
    workspace = WorkspaceHook().get_conn()
    assert workspace.ledger.address == "postgresql+psycopg2://me@db/e"
    assert workspace.store.root == f"file://{tmp_path}/artifacts"
    assert workspace.tracking_uri == "http://mlflow:5000"
    assert os.environ[asking.KEY] == "a key"


def test_other_connections_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ANOTHER", '{"conn_type": "sqlite", "schema": "/tmp/l.db"}')
    workspace = WorkspaceHook(ledger_conn_id="another").get_conn()
    assert workspace.ledger.url.database == "/tmp/l.db"


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The Connections that were asked for, in order; all are there."""
    asked: list[str] = []
    there = {
        "evergreen_ledger": Connection(
            conn_id="evergreen_ledger", conn_type="postgres", host="db", password="p"
        ),
        "evergreen_store": Connection(
            conn_id="evergreen_store", conn_type="generic", host="s3://bucket/e"
        ),
        "evergreen_mlflow": Connection(
            conn_id="evergreen_mlflow", conn_type="http", host="mlflow", password="p"
        ),
        "evergreen_serving": Connection(
            conn_id="evergreen_serving", conn_type="generic", password="a key"
        ),
    }

    def get_connection(_: type[BaseHook], conn_id: str) -> Connection:
        asked.append(conn_id)
        return there[conn_id]

    # What is tested is how often Airflow is asked: this stands where its answers come from.
    monkeypatch.setattr(BaseHook, "get_connection", classmethod(get_connection))
    return asked


def test_each_is_looked_up_once_and_mlflows_when_its_address_is_asked_for(
    looked_up: list[str],
) -> None:
    workspace = WorkspaceHook().get_conn()
    assert sorted(looked_up) == ["evergreen_ledger", "evergreen_serving", "evergreen_store"]
    assert os.environ[TOKEN] == ""
    assert {workspace.tracking_uri, workspace.tracking_uri} == {"http://mlflow"}
    assert looked_up[3:] == ["evergreen_mlflow"]
    assert os.environ[TOKEN] == "p"


@pytest.mark.parametrize("replicas", [[], ["http://10.0.0.7:8080"]])
def test_the_key_is_looked_up_for_models_with_replicas(
    replicas: list[str], looked_up: list[str], tmp_path: Path
) -> None:
    workspace_of(declare(tmp_path, serving={"replicas": replicas}))
    assert ("evergreen_serving" in looked_up) == bool(replicas)
    assert os.environ[asking.KEY] == ("a key" if replicas else "")


def test_no_retry_mends_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_EVERGREEN_STORE", '{"conn_type": "generic", "host": "here"}')
    with pytest.raises(AirflowFailException, match="which is no root"):
        workspace_of(declare(tmp_path))
