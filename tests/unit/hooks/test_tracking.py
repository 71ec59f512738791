"""MLflow's Connection: an address without credentials, credentials where MLflow looks for them."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from evergreen.errors import DeclarationError
from evergreen.hooks.tracking import MlflowHook
from evergreen.standalone import free_port
from tests.replicas import running, text

SECRET = "planted/secret"
VARIABLES = (
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
)
SEARCH = "api/2.0/mlflow/experiments/search"
WELL = {"health": text(b"OK"), "version": text(b"3.17.2"), SEARCH: text({"experiments": []})}


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a hook sets is undone
        monkeypatch.delenv(name)


def hook(monkeypatch: pytest.MonkeyPatch, host: str, **connection: Any) -> MlflowHook:
    given = {"conn_type": "evergreen_mlflow", "host": host, **connection}
    monkeypatch.setenv("AIRFLOW_CONN_EVERGREEN_MLFLOW", json.dumps(given))
    return MlflowHook()


def who() -> dict[str, str]:
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


@pytest.mark.parametrize(
    ("connection", "address"),
    [
        ({"host": "https://mlflow:5000/"}, "https://mlflow:5000"),
        ({"host": "https://mlflow/tracking", "port": 5000}, "https://mlflow:5000/tracking"),
        ({"conn_type": "http", "host": "mlflow", "port": 5000}, "http://mlflow:5000"),
        ({"conn_type": "http", "schema": "https", "host": "mlflow"}, "https://mlflow"),
        ({"host": "sqlite:////srv/mlflow.db"}, "sqlite:////srv/mlflow.db"),
        (
            {"host": "postgresql://db:5432/mlflow", "login": "me", "password": "p@ss/"},
            "postgresql://me:p%40ss%2F@db:5432/mlflow",
        ),
    ],
)
def test_addresses(
    connection: dict[str, Any], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hook(monkeypatch, **connection).tracking_uri() == address


@pytest.mark.parametrize(
    ("host", "message"),
    [("mlflow:5000", "Write it whole"), ("https://me:planted@mlflow", "host holds credentials")],
)
def test_what_it_can_not_use_is_said(
    host: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeclarationError, match=message) as caught:
        hook(monkeypatch, host).tracking_uri()
    assert "planted" not in str(caught.value)


def test_a_password_without_a_login_is_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    hook(monkeypatch, "https://mlflow", login="me", password=SECRET).sign_in()
    assert who() == {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": SECRET}
    hook(monkeypatch, "https://mlflow", password=SECRET).sign_in()
    assert who() == {"MLFLOW_TRACKING_TOKEN": SECRET}


def test_one_without_credentials_leaves_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    hook(monkeypatch, "https://mlflow").sign_in()
    assert who() == {"MLFLOW_TRACKING_TOKEN": SECRET}


def test_a_databases_password_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    hook(monkeypatch, "postgresql://db/mlflow", login="me", password=SECRET).sign_in()
    assert who() == {}


def test_how_far_tls_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    extra: dict[str, Any] = {"ca_certificate": "/etc/ca.pem"}
    hook(monkeypatch, "https://mlflow", extra=extra).sign_in()
    assert who() == {"MLFLOW_TRACKING_SERVER_CERT_PATH": "/etc/ca.pem"}
    monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
    hook(monkeypatch, "https://mlflow", extra=extra | {"verify_tls": False}).sign_in()
    assert who() == {"MLFLOW_TRACKING_INSECURE_TLS": "true"}


def test_the_client_sends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(**WELL) as server:
        client = hook(monkeypatch, server.address, login="me", password=SECRET).get_conn()
        assert client.search_experiments() == []
        sent = base64.b64encode(f"me:{SECRET}".encode()).decode()
        assert server.asked[-1][1]["authorization"] == f"Basic {sent}"


@pytest.mark.parametrize(
    ("login", "sent"), [("me", "Basic bWU6cGxhbnRlZC9zZWNyZXQ="), (None, f"Bearer {SECRET}")]
)
def test_a_server_is_asked_with_them(
    login: str | None, sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(**WELL) as server:
        asked = hook(monkeypatch, server.address, login=login, password=SECRET)
        passed, said = asked.test_connection()
        assert passed, said
        assert (
            said == f"MLflow 3.17.2 at {server.address} is well and lets us read its experiments."
        )
        assert {headers["authorization"] for _, headers, _ in server.asked} == {sent}
    assert who() == {}, "a test changed its process"


def test_a_server_that_refuses_them_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = text({"error": f"no {SECRET} here"}, status=401)
    with running(**(WELL | {SEARCH: refuses})) as server:
        asked = hook(monkeypatch, server.address, login="me", password=SECRET)
        passed, said = asked.test_connection()
    assert not passed
    assert "answers 401: check login and password" in said
    assert SECRET not in said


def test_an_address_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    passed, said = hook(monkeypatch, f"http://127.0.0.1:{free_port()}").test_connection()
    assert not passed
    assert "ConnectError" in said


def test_a_database_is_connected_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mlflow.db"
    asked = hook(monkeypatch, f"sqlite:///{path}")
    assert asked.test_connection()[0]
    assert not path.exists(), "looking made it"
    with sa.create_engine(f"sqlite:///{path}").begin() as connection:
        connection.execute(sa.text("CREATE TABLE experiments (id INTEGER)"))
    assert asked.test_connection() == (True, f"Connected to MLflow's database at sqlite:///{path}.")
