"""MLflow's Connection: its address, and who we are to it.

MLflow's client knows credentials only as variables of the process, so that is where they go: a
task is a process of its own and has one MLflow. They are written under a lock and only when they
differ, so threads of a process with one Connection never see them change.
"""

from __future__ import annotations

import os
from threading import Lock
from typing import TYPE_CHECKING, ClassVar

from evergreen.hooks.base import PATIENCE, ConnectionHook, flag, texts

if TYPE_CHECKING:
    import httpx
    from airflow.sdk import Connection
    from mlflow import MlflowClient

_SCHEMES = frozenset({"http", "https"})
_WHO = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_WRITING = Lock()


class MlflowHook(ConnectionHook):
    """MLflow's tracking server or database, also its registry.

    A password without a login is a token.

    :param conn_id: the Connection.
    """

    conn_type: ClassVar[str] = "evergreen_mlflow"
    default_conn_name: ClassVar[str] = "evergreen_mlflow"
    hook_name: ClassVar[str] = "Evergreen MLflow"

    def get_conn(self) -> MlflowClient:
        """MLflow's client, with the Connection's credentials."""
        from mlflow import MlflowClient

        uri = self.tracking_uri()
        self.sign_in()
        return MlflowClient(tracking_uri=uri, registry_uri=uri)

    def tracking_uri(self) -> str:
        """The tracking address: a server's without credentials, a database's with its own.

        :raises DeclarationError: when the Connection doesn't say how MLflow is spoken to.
        """
        connection = self.connection()
        host = (connection.host or "").strip()
        if "://" in host:
            scheme, _, rest = host.partition("://")
            return (
                self._server(connection, scheme, rest) if scheme in _SCHEMES else self._database()
            )
        scheme = next((s for s in (connection.schema, connection.conn_type) if s in _SCHEMES), "")
        if not scheme or not host:
            raise self.wrong(
                f"host is {host!r}, which says not how to speak to MLflow. Write it whole, like "
                "https://mlflow.example.com:5000."
            )
        return self._server(connection, scheme, host)

    def _server(self, connection: Connection, scheme: str, rest: str) -> str:
        """A server's address, its port where it belongs."""
        place, slash, path = rest.partition("/")
        self.refuse_credentials(
            f"{scheme}://{place}", "Login and password have fields of their own."
        )
        port = f":{connection.port}" if connection.port and ":" not in place else ""
        return f"{scheme}://{place}{port}{slash}{path}".rstrip("/")

    def _database(self) -> str:
        """A database's URL, with the Connection's login and password."""
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        connection = self.connection()
        try:
            url = make_url(connection.host or "")
        except ArgumentError:
            raise self.wrong(
                "host is no address. Write it whole, like https://mlflow.example.com:5000."
            ) from None
        self.hide(url.password if isinstance(url.password, str) else None)
        url = url.set(
            username=connection.login or url.username, password=connection.password or url.password
        )
        return url.render_as_string(hide_password=False)

    def sign_in(self) -> None:
        """Put the Connection's credentials where MLflow's client looks for them.

        One that has none leaves the environment's as they are.
        """
        connection, fields = self.connection(), texts(self.connection())
        given = {}
        if connection.password and self.tracking_uri().startswith("http"):
            login, password = connection.login, connection.password
            who = (login, password, None) if login else (None, None, password)
            given = dict(zip(_WHO, who, strict=True))
        if not flag(fields, "verify_tls", default=True):
            given["MLFLOW_TRACKING_INSECURE_TLS"] = "true"
        elif "ca_certificate" in fields:
            given["MLFLOW_TRACKING_SERVER_CERT_PATH"] = fields["ca_certificate"]
        with _WRITING:
            for name, value in given.items():
                if value is None:
                    os.environ.pop(name, None)
                elif os.environ.get(name) != value:
                    os.environ[name] = value

    def ask(self) -> str:
        """Ask a server whether it is well and lets us in; connect to a database."""
        uri = self.tracking_uri()
        return self._ask_server(uri) if uri.startswith("http") else self._ask_database(uri)

    def _ask_server(self, uri: str) -> str:
        import ssl

        import httpx

        connection, fields = self.connection(), texts(self.connection())
        verify: ssl.SSLContext | bool = flag(fields, "verify_tls", default=True)
        if verify:
            verify = ssl.create_default_context(cafile=fields.get("ca_certificate"))
        headers, auth = {}, None
        if connection.password and connection.login:
            auth = httpx.BasicAuth(connection.login, connection.password)
        elif connection.password:
            headers["Authorization"] = f"Bearer {connection.password}"
        try:
            with httpx.Client(
                headers=headers, auth=auth, verify=verify, timeout=PATIENCE, base_url=uri
            ) as client:
                return _welcome(client, uri)
        except httpx.TransportError as error:
            what = f"{type(error).__name__}: {error}".rstrip(": ")
            raise ConnectionError(f"MLflow at {uri} can't be reached ({what})") from error

    def _ask_database(self, uri: str) -> str:
        from pathlib import Path

        from sqlalchemy import NullPool, create_engine, make_url, text

        url = make_url(uri)
        address = url.render_as_string(hide_password=True)
        sqlite = url.get_backend_name() == "sqlite"
        if sqlite and not Path(url.database or "").exists():
            return f"There is no file at {address} yet; the first task makes it."
        bounds = {"timeout" if sqlite else "connect_timeout": int(PATIENCE)}
        with create_engine(url, poolclass=NullPool, connect_args=bounds).connect() as connection:
            connection.execute(text("SELECT 1"))
        return f"Connected to MLflow's database at {address}."


def _welcome(client: httpx.Client, uri: str) -> str:
    """What a server says that is well and lets us in.

    :raises PermissionError: when it doesn't let us in.
    """
    client.get("health").raise_for_status()  # open to everybody, also where the rest isn't
    allowed = client.post("api/2.0/mlflow/experiments/search", json={"max_results": 1})
    if allowed.status_code in {401, 403}:
        raise PermissionError(
            f"MLflow at {uri} answers {allowed.status_code}: check login and password; a password "
            "without a login is sent as a token"
        )
    allowed.raise_for_status().json()
    version = client.get("version")
    named = f" {version.text.strip()[:20]}" if version.is_success else ""
    return f"MLflow{named} at {uri} is well and lets us read its experiments."
