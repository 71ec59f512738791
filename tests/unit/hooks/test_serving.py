"""The serving Connection: the key reaches who asks replicas, and "Test" tries it on real guards."""

import json
import os
from typing import Any

import pytest

from evergreen.errors import DeclarationError
from evergreen.hooks.serving import ServingHook
from evergreen.lifecycle import asking
from evergreen.standalone import free_port
from tests.replicas import guarded

KEY = "planted/key"


def hook(monkeypatch: pytest.MonkeyPatch, host: str = "", password: str = KEY) -> ServingHook:
    given: dict[str, Any] = {"conn_type": "evergreen_serving", "host": host, "password": password}
    monkeypatch.setenv("AIRFLOW_CONN_EVERGREEN_SERVING", json.dumps(given))
    return ServingHook()


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(asking.KEY, "")


def test_the_key_reaches_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    with guarded(KEY) as address:
        assert asking.ask([address], "GET", "/version", timeout=5)[0].status == 401
        hook(monkeypatch).sign_in()
        assert asking.ask([address], "GET", "/version", timeout=5)[0].status == 200
        with hook(monkeypatch).get_conn() as client:
            assert client.get(f"{address}/version").status_code == 200


def test_one_without_a_key_leaves_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(asking.KEY, "the environment's")
    hook(monkeypatch, password="").sign_in()
    assert os.environ[asking.KEY] == "the environment's"


def test_the_key_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with guarded(KEY) as one, guarded(None) as other:
        passed, told = hook(monkeypatch, f"{one}, {other}/").test_connection()
        assert passed
        assert told == (
            f"{one} takes the key and serves example version 7; "
            f"{other} asks for no key and serves example version 7."
        )
        assert os.environ[asking.KEY] == "", "a test changed its process"


def test_the_environments_key_does_not_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(asking.KEY, KEY)
    with guarded(KEY) as address:
        wrong = hook(monkeypatch, address, "another key").test_connection()
        none = hook(monkeypatch, address, "").test_connection()
    assert wrong == (False, f"PermissionError: {address} refuses this key")
    assert none == (False, f"PermissionError: {address} refuses to answer without a key")


def test_a_replica_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    with guarded(KEY) as address:
        passed, told = hook(monkeypatch, f"{address} {gone}").test_connection()
    assert not passed
    assert f"{gone} can't be reached" in told


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("", "no address is known"),
        ("replica-1:8080", "Write replicas whole"),
        ("http://me:planted@replica-1", "host holds credentials"),
    ],
)
def test_what_it_can_not_use_is_said(
    host: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hook(monkeypatch, host)
    with pytest.raises(DeclarationError, match=message) as caught:
        asked.ask()
    assert "planted" not in str(caught.value)
    assert asked.test_connection() == (False, str(caught.value))
