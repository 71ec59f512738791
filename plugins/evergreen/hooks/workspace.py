"""Turn Airflow Connections into a `Workspace`. What has no Connection comes from the environment.

========================  ===============================================================
Connection                what it holds
========================  ===============================================================
``evergreen_ledger``      the ledger's database (`evergreen.hooks.ledger`)
``evergreen_store``       the store's root, and what opens it (`evergreen.hooks.store`)
``evergreen_mlflow``      MLflow's address, login and password (`evergreen.hooks.tracking`)
``evergreen_serving``     the replicas' API key (`evergreen.hooks.serving`)
========================  ===============================================================

Each may be of the type of the same name, or of the generic one it resembles. A task asks Airflow's
API server for each, so none is looked up that isn't used.
"""

from __future__ import annotations

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowFailException

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError
from evergreen.hooks.ledger import LedgerHook
from evergreen.hooks.serving import ServingHook
from evergreen.hooks.store import StoreHook
from evergreen.hooks.tracking import MlflowHook
from evergreen.workspace import Workspace


class WorkspaceHook(BaseHook):
    """Where this deployment keeps its ledger, artifacts and models.

    :param ledger_conn_id: Connection of the ledger.
    :param store_conn_id: Connection of the store.
    :param mlflow_conn_id: Connection of MLflow.
    :param serving_conn_id: Connection of serving; None where no replica will be asked.
    """

    hook_name = "Evergreen workspace"

    def __init__(
        self,
        *,
        ledger_conn_id: str = LedgerHook.default_conn_name,
        store_conn_id: str = StoreHook.default_conn_name,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        serving_conn_id: str | None = ServingHook.default_conn_name,
    ) -> None:
        super().__init__()
        self.ledger = LedgerHook(conn_id=ledger_conn_id)
        self.store = StoreHook(conn_id=store_conn_id)
        self.mlflow = MlflowHook(conn_id=mlflow_conn_id)
        self.serving = ServingHook(conn_id=serving_conn_id) if serving_conn_id else None

    def get_conn(self) -> Workspace:
        """The workspace; nothing of it is connected to before it is used.

        The credentials that MLflow and the replicas are asked with go into this process's
        environment: the replicas' at once, MLflow's when its address is first asked for.

        :raises DeclarationError: when a Connection can't be used; MLflow's when it is asked for.
        """
        stored = self.store.found()
        if self.serving and self.serving.found():
            self.serving.sign_in()
        return Workspace.from_environment(
            ledger_url=self.ledger.url() if self.ledger.found() else None,
            store_uri=self.store.root() if stored else None,
            store_options=self.store.options() if stored else None,
            tracking=self._tracking,
        )

    def _tracking(self) -> str | None:
        """MLflow's address, when there is a Connection; its credentials are in the environment."""
        if not self.mlflow.found():
            return None
        self.mlflow.sign_in()
        return self.mlflow.tracking_uri()


def workspace_of(model: Declaration) -> Workspace:
    """The deployment's places, as a task of the model needs them.

    :raises AirflowFailException: for a Connection that can't be used: no retry mends it.
    """
    serving = ServingHook.default_conn_name if model.serving.replicas else None
    try:
        return WorkspaceHook(serving_conn_id=serving).get_conn()
    except DeclarationError as error:
        raise AirflowFailException(str(error)) from error
