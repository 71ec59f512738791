"""Reaching MLflow: one client, a bounded wait, and errors that name the address."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from evergreen.errors import unavailable
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: Seconds that an address gets to answer before the task gives up and leaves it to its retry.
PATIENCE = 4.0
#: MLflow's own retries add up to minutes; a task's retries are there for that. Its progress bars
#: fill a task's log.
_SETTINGS = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
#: Where MLflow writes down what it was pointed at, for children to inherit. A workspace made next,
#: here or in a child, would take that for its own declared address.
_LEFT_BEHIND = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
_BROKEN = frozenset({"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED"})


class _BrokenError(Exception):
    """MLflow's way of saying that something behind it doesn't work."""


def client(workspace: Workspace) -> MlflowClient:
    """MLflow's client for the workspace, once its address has answered.

    MLflow's registry looks logged models up through the process's own tracking URI, so that is
    set as well.

    :raises UnavailableError: naming the address, after `PATIENCE` seconds.
    """
    import mlflow

    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    uri = workspace.tracking_uri
    with unavailable("MLflow", address(uri), *_unreachable()):
        _answers(uri, os.getpid())
    if mlflow.get_tracking_uri() != uri or mlflow.get_registry_uri() != uri:
        found = {name: os.environ.get(name) for name in _LEFT_BEHIND}
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        for name, before in found.items():
            if before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def session(workspace: Workspace) -> Iterator[MlflowClient]:
    """The client, for a block in which whatever is broken behind it is an `UnavailableError`."""
    from mlflow.exceptions import MlflowException

    with unavailable("MLflow", address(workspace.tracking_uri), _BrokenError, *_unreachable()):
        try:
            yield client(workspace)
        except MlflowException as error:
            if error.error_code in _BROKEN:
                raise _BrokenError(str(error)) from error
            raise


def address(uri: str) -> str:
    """A URI without the credentials in it."""
    return re.sub(r"//[^/@]*@", "//", uri.partition("?")[0])


@lru_cache(maxsize=8)
def _answers(uri: str, _process: int) -> None:
    """Knock at an address until it answers, for `PATIENCE` seconds; once for each process.

    MLflow itself would knock for 100 s at a database and for minutes at a server.
    """
    import httpx
    import sqlalchemy as sa
    from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

    @retry(
        retry=retry_if_exception_type((httpx.TransportError, sa.exc.OperationalError)),
        stop=stop_after_delay(PATIENCE),
        wait=wait_exponential_jitter(0.2, 1.0),
        reraise=True,
    )
    def knock() -> None:
        if uri.startswith("http"):
            httpx.get(f"{uri.rstrip('/')}/health", timeout=PATIENCE)
        elif "sqlite" in uri:
            Path(sa.make_url(uri).database or "").parent.mkdir(parents=True, exist_ok=True)
        else:
            engine = sa.create_engine(uri, poolclass=sa.NullPool)
            engine.connect().close()

    knock()


def _unreachable() -> tuple[type[Exception], ...]:
    """What "not reachable" looks like, from MLflow's and the artifacts' side."""
    import httpx
    import requests
    import sqlalchemy as sa

    causes = (
        httpx.TransportError,
        requests.RequestException,
        sa.exc.OperationalError,
        ConnectionError,
        TimeoutError,
        PermissionError,
        NotADirectoryError,
        FileExistsError,
    )
    # Only a process that has spoken to S3 can meet its errors.
    botocore = sys.modules.get("botocore.exceptions")
    return (*causes, botocore.BotoCoreError, botocore.ClientError) if botocore else causes
