"""What the hooks of Evergreen's Connections share: finding one, hiding secrets, a bounded "Test".

A test really asks, in a thread that is left behind when it takes too long, and what it says holds
no secret, whoever wrote the message. It changes nothing in the process: Airflow's API server runs
it beside other requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import Future
from contextvars import copy_context
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import quote, quote_plus, unquote

from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from evergreen.errors import DeclarationError, UnavailableError

#: Seconds that a test may take in all, and one question within it.
LONGEST, PATIENCE = 10.0, 4.0


class ConnectionHook(BaseHook):
    """A hook over one Connection of Evergreen's.

    :param conn_id: the Connection.
    """

    conn_name_attr: ClassVar[str] = "conn_id"
    default_conn_name: ClassVar[str]
    conn_type: ClassVar[str]
    hook_name: ClassVar[str]

    def __init__(self, *, conn_id: str | None = None) -> None:
        super().__init__()
        self.conn_id = conn_id or self.default_conn_name
        self._secrets: set[str] = set()
        self._connection: Connection | None = None

    def connection(self) -> Connection:
        """The Connection, looked up once; its password hidden from logs from here on.

        :raises AirflowNotFoundException: when there is none.
        """
        if self._connection is None:
            self._connection = self.get_connection(self.conn_id)
            self.hide(self._connection.password)
        return self._connection

    def found(self) -> bool:
        """Whether there is such a Connection."""
        try:
            self.connection()
        except AirflowNotFoundException:
            return False
        return True

    def hide(self, *secrets: str | None) -> None:
        """Keep secrets out of logs and messages, also as URLs spell them."""
        for secret in filter(None, secrets):
            for each in sorted(spellings(secret) - self._secrets):
                mask_secret(each)
            self._secrets |= spellings(secret)

    def test_connection(self) -> tuple[bool, str]:
        """Ask, for `LONGEST` seconds at most: whether it works, and what was found."""
        answer: Future[str] = Future()

        def run() -> None:
            try:
                answer.set_result(self.ask())
            except Exception as error:  # noqa: BLE001 - whoever waits for the answer gets it
                answer.set_exception(error)

        Thread(target=copy_context().run, args=(run,), name="test-connection", daemon=True).start()
        try:
            error = answer.exception(LONGEST)
        except TimeoutError:
            return False, f"The Connection didn't answer within {LONGEST:g} s."
        said = answer.result() if error is None else _told(error)
        return error is None, without(self._secrets, said)

    def ask(self) -> str:
        """Ask what is at the other end, and say what was found.

        :raises Exception: whatever says that it doesn't work.
        """
        raise NotImplementedError  # each type of connection asks in its own way

    def refuse_credentials(self, address: str, where: str) -> None:
        """Refuse an address that holds a login: it is shown wherever the address is.

        :param where: they belong.
        :raises DeclarationError: which doesn't show them.
        """
        if user := credentials_in(address):
            secret = user.partition(":")[2] or user
            self.hide(secret, unquote(secret))
            raise self.wrong(
                f"host holds credentials, which would be shown with the address. {where}"
            )

    def wrong(self, what: str) -> DeclarationError:
        """The error for a Connection that can't be used.

        :param what: what was found, what is allowed, and what to do.
        """
        return DeclarationError(without(self._secrets, f"the Connection {self.conn_id}: {what}"))


def spellings(secret: str) -> set[str]:
    """A secret as it is, and as URLs spell it: in a path, all quoted, in a form, SQLAlchemy's."""
    quoted = {quote(secret, safe=safe) for safe in ("/", "", " +")}
    return {secret, quote_plus(secret), *quoted}


def without(secrets: Iterable[str], message: str) -> str:
    """A message that can be shown to anybody who sees the Connection's name."""
    longest = sorted(filter(None, secrets), key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest)), "***", message) if longest else message


def credentials_in(address: str) -> str | None:
    """What stands before the ``@`` of an address's place, if anything does."""
    place = address.partition("://")[2].partition("/")[0]
    user, at, _ = place.rpartition("@")
    return user if at else None


def texts(connection: Connection) -> dict[str, str]:
    """A Connection's extra fields that hold something, as text."""
    given: dict[str, Any] = connection.extra_dejson
    return {name: _text(value) for name, value in given.items() if value not in (None, "")}


def flag(fields: dict[str, str], name: str, *, default: bool) -> bool:
    """A field that says yes or no: a Connection written as a URL knows text only."""
    return fields.get(name, str(default)).lower() in {"true", "1", "yes"}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _told(error: BaseException) -> str:
    """An error for who looks at a form: nothing there is retried."""
    if isinstance(error, UnavailableError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, DeclarationError):
        return str(error)
    return f"{type(error).__name__}: {error}"
