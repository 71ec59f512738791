"""Deploy: what another platform is told of the version that is live, under names of its own.

The ledger says what is live; the names follow from the version and from the declaration, so that
telling the platform twice changes nothing there, and a changed declaration is told anew.
"""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterator
from io import BytesIO

from evergreen.declaration import Declaration, DeclarationError
from evergreen.ledger import records
from evergreen.lifecycle.contracts.base import Result
from evergreen.lifecycle.elsewhere import check_reachable
from evergreen.store import digest_of
from evergreen.workspace import Workspace


class Deployment(Result):
    """A version as SageMaker is to know it.

    ``name`` is of its model and endpoint configuration, ``archive`` of the file that SageMaker
    unpacks for a container: it says which version that is; the files themselves a replica reads
    from the registry, as every replica does. ``environment`` holds no secret.
    """

    kind = "deployment"
    version: str
    name: str
    archive: str
    environment: dict[str, str]

    def describe(self) -> Iterator[str]:
        yield f"version {self.version} is live; SageMaker knows it as {self.name}"
        yield f"model data: {self.archive}"


def plan(declaration: Declaration, workspace: Workspace) -> Deployment | None:
    """What SageMaker is to be told now; None while nothing is live.

    :raises DeclarationError: when nothing is declared, or SageMaker can't reach store or MLflow.
    """
    declared = declaration.sagemaker
    if declared is None:
        raise DeclarationError(
            f"{declaration.name}: the declaration has no section sagemaker: nothing is deployed there"
        )
    check_reachable(workspace)
    with workspace.ledger.read() as session:
        champion = records.champion(session, declaration.name)
    if champion is None:
        return None
    environment = {
        "EVERGREEN_HOME": "/tmp/evergreen",  # noqa: S108 - of the container, which is its own
        "EVERGREEN_SERVE_HOST": "0.0.0.0",  # noqa: S104 - SageMaker asks from outside the container
        "EVERGREEN_SERVE_MODELS": declaration.name,
        "EVERGREEN_SERVING_OPEN": "true",  # AWS asks who may invoke the endpoint
        "EVERGREEN_STORE_URI": workspace.store.root,
        "MLFLOW_TRACKING_URI": workspace.tracking_uri,
        **declared.environment,
    }
    told = digest_of([environment, declared.model_dump(mode="json")])[:8]
    short = declaration.name.replace("_", "-")[:32].rstrip("-")
    version = champion.version
    archive = f"deployments/{declaration.name}/{version}/model.tar.gz"
    if not workspace.store.exists(workspace.store.uri(archive)):
        workspace.store.put_bytes(archive, _packed({"model": declaration.name, "version": version}))
    return Deployment(
        model=declaration.name,
        version=version,
        name=f"{short}-{told}-v{version}",
        archive=workspace.store.uri(archive),
        environment=environment,
    )


def _packed(content: dict[str, str]) -> bytes:
    """A ``model.tar.gz`` with one small file; the same content gives the same bytes."""
    text = json.dumps(content, sort_keys=True).encode()
    packed = BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        member = tarfile.TarInfo("evergreen.json")
        member.size = len(text)
        tar.addfile(member, BytesIO(text))
    return packed.getvalue()
