"""Where the pages read: this deployment's workspace, from the same Connections as the tasks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from airflow.api_fastapi.common.db.common import SessionDep
from airflow.models.dag import DagModel
from fastapi import Depends
from sqlalchemy import select
from sqlalchemy.orm import Session

from evergreen.declaration import Declaration, DeclarationError, read_declaration
from evergreen.hooks.workspace import WorkspaceHook
from evergreen.ledger import Ledger
from evergreen.workspace import Workspace

#: Seconds after which Connections are read anew.
REMEMBERED = 60.0


def workspace() -> Workspace:
    """The workspace; a changed Connection is seen within a minute."""
    return _workspace(int(time.monotonic() / REMEMBERED))


def ledger() -> Iterator[Session]:
    """A session of the ledger that only reads."""
    with workspace().ledger.read() as session:
        yield session


def declared(model: str, session: SessionDep) -> Declaration | DeclarationError | None:
    """The model's declaration, which lies beside its DAG file; why it can't be read; None when
    the file isn't on this machine (a Git bundle's isn't)."""
    fileloc = session.scalar(select(DagModel.fileloc).where(DagModel.dag_id == f"{model}.retrain"))
    if not fileloc:
        return None
    folder = Path(fileloc).parents[1] / "include" / "models" / model
    if not folder.is_dir():
        return None
    try:
        return read_declaration(folder)
    except DeclarationError as error:
        return error


WorkspaceDep = Annotated[Workspace, Depends(workspace)]
LedgerDep = Annotated[Session, Depends(ledger)]
DeclaredDep = Annotated[Declaration | DeclarationError | None, Depends(declared)]


@lru_cache(maxsize=1)
def _workspace(_minute: int) -> Workspace:
    found = WorkspaceHook().get_conn()
    return replace(found, ledger=_ledger(found.ledger.url.render_as_string(hide_password=False)))


@lru_cache(maxsize=2)
def _ledger(url: str) -> Ledger:
    """One pool of connections for as long as the address is the same."""
    return Ledger(url)
