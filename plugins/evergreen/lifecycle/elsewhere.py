"""Whether what a deployment uses can be used from another machine, without a secret in an address."""

from __future__ import annotations

from evergreen.errors import DeclarationError
from evergreen.workspace import Workspace


def check_reachable(workspace: Workspace) -> None:
    """Refuse addresses that a container elsewhere can't use.

    :raises DeclarationError: naming the address, without what may be secret in it.
    """
    store, tracking = workspace.store.root, workspace.tracking_uri
    if not store.startswith("s3://"):
        raise DeclarationError(
            f"the store is at {store}, which SageMaker can't reach. Set "
            "EVERGREEN_STORE_URI or the Connection evergreen_store to s3://bucket/folder."
        )
    if not tracking.startswith(("http://", "https://")):
        raise DeclarationError(
            f"MLflow at {tracking.partition(':')[0]}: is a file or a database: SageMaker "
            "can't reach it, or only with a password in its address. Run an MLflow server, and set "
            "MLFLOW_TRACKING_URI or the Connection evergreen_mlflow to its https address."
        )
    if "@" in tracking.partition("://")[2].partition("/")[0]:
        raise DeclarationError(
            "MLflow's address holds a login, which SageMaker would show to who may list jobs. Take it out "
            "of the address; credentials come from the Connection evergreen_mlflow here, and from "
            "the image or its role there."
        )
