"""Airflow's real API server app in this process, over a metadata database of its own.

It is made once, and is this process's only while a file of this folder runs: Airflow keeps its
app, its engine and its auth manager by process, and other folders' tests find theirs as they were.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from starlette.testclient import TestClient

from evergreen.ledger import Ledger
from evergreen.workspace import Workspace
from tests.scenarios.project import Project
from tests.unit.ui.browser import Person
from tests.unit.ui.deployment import MAIN, deployed, fill
from tests.unit.ui.keeper import MODELS, USERS


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The repository's DAG files over some models. Not to be changed."""
    project = Project.create(tmp_path_factory.mktemp("pages") / "project", MODELS[0])
    for name in MODELS[1:]:
        Project(project.folder, name).declare()
    return project


@pytest.fixture(scope="session")
def main(project: Project) -> ModuleType:
    """The module whose ``app`` is Airflow's, with our plugin; `MODELS`' DAGs are in its database."""
    passwords = {name: f"{name}'s" for name in USERS}
    (project.folder / "passwords.json").write_text(json.dumps(passwords))
    with deployed(project):
        fill(project)
        return importlib.import_module(MAIN)


@pytest.fixture(scope="module")
def server(project: Project, main: ModuleType) -> Iterator[TestClient]:
    """Airflow's app, while it is this process's."""
    from airflow.api_fastapi.app import _AuthManagerState

    with deployed(project):
        _AuthManagerState.instance = main.app.state.auth_manager
        sys.modules[MAIN] = main
        with TestClient(main.app) as client:
            yield client


@pytest.fixture(scope="module")
def people(server: TestClient) -> dict[str, Person]:
    """Who has logged in, by name; ``nobody`` hasn't."""
    found = {"nobody": Person(server)}
    for name in USERS:
        said = server.post("/auth/token", json={"username": name, "password": f"{name}'s"})
        found[name] = Person(server, said.json()["access_token"])
    server.cookies.clear()
    return found


@pytest.fixture
def admin(people: dict[str, Person]) -> Person:
    return people["admin"]


@pytest.fixture
def vera(people: dict[str, Person]) -> Person:
    """She may look, and nothing else."""
    return people["vera"]


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger without a row, so that migrations run once."""
    path = tmp_path_factory.mktemp("blank") / "ledger.db"
    ledger = Ledger(f"sqlite:///{path}")
    with ledger.write():
        pass
    ledger.engine.dispose()
    return path


@pytest.fixture(autouse=True)
def workspace(
    server: TestClient, blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workspace]:
    """The deployment's places, anew for each test."""
    from evergreen.ui import places

    shutil.copy(blank, tmp_path / "ledger.db")
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))
    places._workspace.cache_clear()
    yield places.workspace()
    places._workspace.cache_clear()
    places._ledger.cache_clear()
