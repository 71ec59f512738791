"""What all Connections share: a bounded "Test", and no secret in anything it or a task says."""

import io
import json
import logging
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import quote, quote_plus

import pytest
from airflow.sdk.exceptions import AirflowNotFoundException
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL

from evergreen.hooks import base
from evergreen.hooks.base import ConnectionHook, spellings, without
from evergreen.hooks.ledger import LedgerHook
from evergreen.hooks.serving import ServingHook
from evergreen.hooks.store import StoreHook
from evergreen.hooks.tracking import MlflowHook

PLANTED = "pl@nted/s3cret:ü#%"
SPELLED = ("pl@nted", "pl%40nted", "s3cret")
HOOKS = (LedgerHook, StoreHook, MlflowHook, ServingHook)


class _Asked(ConnectionHook):
    conn_type: ClassVar[str] = "asked"
    default_conn_name: ClassVar[str] = "asked"
    hook_name: ClassVar[str] = "Asked"
    says: Any = "well"

    def ask(self) -> str:
        if isinstance(self.says, Exception):
            raise self.says
        if isinstance(self.says, float):
            time.sleep(self.says)  # as a server that doesn't answer
        return str(self.says)


def test_one_that_does_not_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LONGEST", 0.1)
    hook = _Asked()
    hook.says = 3.0
    began = time.monotonic()
    assert hook.test_connection() == (False, "The Connection didn't answer within 0.1 s.")
    assert time.monotonic() - began < 2


def test_an_answer_that_is_late_by_itself_is_its_own() -> None:
    hook = _Asked()
    hook.says = TimeoutError("the server's")
    assert hook.test_connection() == (False, "TimeoutError: the server's")


@settings(deadline=None)  # the first example imports
@given(
    secret=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1)
)
def test_no_spelling_of_a_secret_is_said(secret: str) -> None:
    url = URL.create("postgresql", "", secret, "h").render_as_string(hide_password=False)
    password = url.removeprefix("postgresql://:").removesuffix("@h")
    message = f"{secret}\n{password}\n{quote(secret)}\n{quote_plus(secret)}"
    shown = without(spellings(secret), message)
    assert shown.split("\n") == ["***"] * 4


@pytest.mark.parametrize("kind", HOOKS)
def test_one_that_is_not_there_says_so(
    kind: type[ConnectionHook], monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = kind(conn_id="not_there")
    assert not hook.found()
    with pytest.raises(AirflowNotFoundException, match="not_there"):
        hook.get_conn()
    passed, said = hook.test_connection()
    assert (passed, "not_there" in said) == (False, True)


@contextmanager
def _rude() -> Iterator[int]:
    """A port that takes connections and hangs up: every client's own kind of failure."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:  # the server is closed: the test is over
                    return

        thread = Thread(target=hang_up, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _failing(port: int) -> dict[str, dict[str, Any]]:
    """Connections with a planted secret that can't work, one or more of every kind."""
    own = {"login": "me", "password": PLANTED}
    return {
        "ledger": {"conn_type": "evergreen_ledger", "host": "127.0.0.1", "port": port, **own},
        "ledger_extra": {
            "conn_type": "evergreen_ledger",
            "host": "127.0.0.1",
            "extra": {"sslpassword": PLANTED},
        },
        "ledger_dialect": {"conn_type": PLANTED, **own},
        "store": {"conn_type": "evergreen_store", "host": "s3://b/e", "extra": {"aws_conn_id": "aws"}},
        "store_user": {"conn_type": "evergreen_store", "host": "s3://me:pl%40nted%2Fs3cret@b/e"},
        "mlflow": {"conn_type": "evergreen_mlflow", "host": f"http://127.0.0.1:{port}", **own},
        "mlflow_user": {
            "conn_type": "evergreen_mlflow",
            "host": f"http://me:pl%40nted%2Fs3cret@127.0.0.1:{port}",
        },
        "mlflow_database": {
            "conn_type": "evergreen_mlflow",
            "host": f"postgresql+psycopg2://127.0.0.1:{port}/m",
            **own,
        },
        "serving": {"conn_type": "evergreen_serving", "host": f"http://127.0.0.1:{port}", **own},
    }  # fmt: skip


@pytest.mark.parametrize("name", _failing(0))
def test_a_failing_connection_shows_no_secret(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its message is what a task's log, XCom and the form would show; so is its error's trace."""
    kind = next(it for it in HOOKS if it.default_conn_name.endswith(name.partition("_")[0]))
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logging.getLogger().addHandler(handler)
    caplog.set_level(logging.DEBUG)
    try:
        with _rude() as port:
            failing = json.dumps(_failing(port)[name])
            monkeypatch.setenv(f"AIRFLOW_CONN_{kind.default_conn_name.upper()}", failing)
            endpoint = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "eu-central-1"}
            aws = {"conn_type": "aws", "login": "an id", "password": PLANTED, "extra": endpoint}
            monkeypatch.setenv("AIRFLOW_CONN_AWS", json.dumps(aws))
            hook = kind()
            passed, said = hook.test_connection()
            trace = ""
            try:
                hook.ask()
            except Exception as error:  # noqa: BLE001 - each client has its own
                trace = "".join(traceback.format_exception(error))
    finally:
        logging.getLogger().removeHandler(handler)
    assert not passed
    assert trace
    for where in (said, trace, heard.getvalue(), caplog.text, repr(hook)):
        for secret in SPELLED:
            assert secret not in where


def test_airflow_masks_what_a_hook_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk._shared.secrets_masker import redact

    given = {"conn_type": "evergreen_ledger", "host": "db", "password": PLANTED}
    monkeypatch.setenv("AIRFLOW_CONN_EVERGREEN_LEDGER", json.dumps(given))
    url = LedgerHook().url()
    assert "pl%40nted" in url
    assert (
        redact(f"connecting to {url} with {PLANTED}")
        == "connecting to postgresql://:***@db with ***"
    )
