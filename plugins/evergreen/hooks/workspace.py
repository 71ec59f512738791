"""Turn Airflow Connections into a `Workspace`. What has no Connection comes from the environment.

========================  ===============================================================
Connection                what it holds
========================  ===============================================================
``evergreen_ledger``      the ledger's SQLAlchemy URL, as Airflow spells connections
``evergreen_store``       the store's root URI in ``host``, like ``s3://bucket/evergreen``
``evergreen_mlflow``      MLflow's tracking address in ``host``, like ``https://mlflow:5000``;
                          login and password, if any, reach MLflow by its own variables
========================  ===============================================================
"""

from __future__ import annotations

import os

from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowNotFoundException

from evergreen.errors import DeclarationError
from evergreen.workspace import Workspace

_SCHEMES = frozenset({"http", "https"})


class WorkspaceHook(BaseHook):
    """Where this deployment keeps its ledger, artifacts and models.

    :param ledger_conn_id: Connection of the ledger.
    :param store_conn_id: Connection of the store.
    :param mlflow_conn_id: Connection of MLflow.
    """

    hook_name = "Evergreen workspace"

    def __init__(
        self,
        *,
        ledger_conn_id: str = "evergreen_ledger",
        store_conn_id: str = "evergreen_store",
        mlflow_conn_id: str = "evergreen_mlflow",
    ) -> None:
        super().__init__()
        self.ledger_conn_id = ledger_conn_id
        self.store_conn_id = store_conn_id
        self.mlflow_conn_id = mlflow_conn_id

    def get_conn(self) -> Workspace:
        """The workspace; nothing is connected to before it is used."""
        ledger = self._connection(self.ledger_conn_id)
        store = self._connection(self.store_conn_id)
        mlflow = self._connection(self.mlflow_conn_id)
        return Workspace.from_environment(
            ledger_url=_sqlalchemy_url(ledger) if ledger else None,
            store_uri=store.host if store else None,
            tracking_uri=_mlflow_address(mlflow) if mlflow else None,
        )

    def _connection(self, conn_id: str) -> Connection | None:
        try:
            return self.get_connection(conn_id)
        except AirflowNotFoundException:
            return None


def _sqlalchemy_url(connection: Connection) -> str:
    """Airflow says ``postgres`` where SQLAlchemy says ``postgresql``."""
    return connection.get_uri().replace("postgres://", "postgresql://", 1)


def _mlflow_address(connection: Connection) -> str:
    """The tracking address, without credentials: those go where MLflow's client looks for them.

    :raises DeclarationError: when the Connection doesn't say how MLflow is spoken to.
    """
    host = connection.host or ""
    if "://" not in host:
        scheme = next((s for s in (connection.schema, connection.conn_type) if s in _SCHEMES), None)
        if scheme is None or not host:
            raise DeclarationError(
                f"the Connection {connection.conn_id}: host is {host!r}, which says not how to speak "
                "to MLflow. Write it whole, like https://mlflow.example.com:5000."
            )
        host = f"{scheme}://{host}"
        host = f"{host}:{connection.port}" if connection.port else host
    for name, value in (("USERNAME", connection.login), ("PASSWORD", connection.password)):
        if value:
            os.environ[f"MLFLOW_TRACKING_{name}"] = value
    return host
