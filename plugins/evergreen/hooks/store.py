"""The store's Connection: its root, and, on S3, the AWS Connection that opens it.

Without an AWS Connection the process's environment opens it, as it does for every other kind of
file system.
"""

from __future__ import annotations

import secrets
from typing import Any, ClassVar

from airflow.sdk.exceptions import AirflowNotFoundException

from evergreen.hooks.base import PATIENCE, ConnectionHook, credentials_in, texts
from evergreen.store import Store


class StoreHook(ConnectionHook):
    """Where artifacts are kept.

    :param conn_id: the Connection.
    """

    conn_type: ClassVar[str] = "evergreen_store"
    default_conn_name: ClassVar[str] = "evergreen_store"
    hook_name: ClassVar[str] = "Evergreen store"

    def get_conn(self) -> Store:
        """The store."""
        return Store(self.root(), self.options())

    def root(self) -> str:
        """The root's URI.

        :raises DeclarationError: when there is none, or credentials stand in it.
        """
        found = (self.connection().host or "").strip()
        user = credentials_in(found) or ""
        if ":" in user:  # a lone name before the @ is a container of Azure's
            self.refuse_credentials(
                found, "Write the root without; aws_conn_id names the Connection that holds them."
            )
        if "://" not in found and not found.startswith("/"):
            raise self.wrong(
                f"host is {found!r}, which is no root. Write it whole, like s3://bucket/evergreen."
            )
        return found

    def options(self) -> dict[str, Any]:
        """What the root's file system needs to be opened; empty for the environment's.

        :raises DeclarationError: when the AWS Connection that is named isn't there, has no
            credentials, or the root isn't on S3.
        """
        name = texts(self.connection()).get("aws_conn_id")
        if not name:
            return {}
        if not self.root().startswith("s3://"):
            raise self.wrong(
                f"aws_conn_id is {name}, but {self.root()} isn't on S3. Leave one of them out."
            )
        try:  # the Amazon provider would go on without, with whatever the environment holds
            self.get_connection(name)
        except AirflowNotFoundException:
            raise self.wrong(
                f"aws_conn_id is {name}, and there is no such Connection. Make it, or leave the "
                "field empty for the environment's credentials."
            ) from None
        return self._of_aws(name)

    def _of_aws(self, name: str) -> dict[str, Any]:
        """What an AWS Connection says, in the words of s3fs."""
        from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook

        hook = AwsBaseHook(aws_conn_id=name, client_type="s3")
        conn = hook.conn_config
        config = dict(conn.extra_config.get("config_kwargs") or {})
        client: dict[str, Any] = {
            "endpoint_url": conn.get_service_endpoint_url("s3"),
            "region_name": conn.region_name,
            "verify": conn.verify,
        }
        options: dict[str, Any] = {
            "client_kwargs": {key: value for key, value in client.items() if value is not None}
        }
        if config.pop("signature_version", None) == "unsigned":
            return options | {"anon": True, "config_kwargs": config}
        found = hook.get_session(region_name=conn.region_name).get_credentials()
        if found is None:
            raise self.wrong(
                f"aws_conn_id is {name}, which has no credentials, nor has the environment. Give "
                "it a key, a profile or a role."
            )
        given = found.get_frozen_credentials()
        self.hide(given.secret_key, given.token)
        keys = {"key": given.access_key, "secret": given.secret_key, "token": given.token}
        return options | keys | {"config_kwargs": config}

    def ask(self) -> str:
        """Write a small object below the root, read it and delete it."""
        options = self.options()
        if self.root().startswith("s3://"):
            options = {**options, "config_kwargs": options.get("config_kwargs", {}) | _BOUNDS}
        store, content = Store(self.root(), options), secrets.token_bytes(32)
        try:
            uri = store.put_bytes(f"probe-{secrets.token_hex(8)}", content)
            try:
                if store.read_bytes(uri) != content:
                    raise ValueError(f"{uri} holds something else than what was written there")
            finally:
                with store.reachable():
                    store.path(uri).unlink()
        except FileNotFoundError as error:  # S3 doesn't say which bucket
            raise FileNotFoundError(f"{self.root()}: {error}") from error
        return f"Wrote, read and deleted {uri}."


#: One try: a person waits for the answer.
_BOUNDS = {
    "connect_timeout": PATIENCE,
    "read_timeout": PATIENCE,
    "retries": {"total_max_attempts": 1},
}
