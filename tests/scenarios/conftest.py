"""A project with a champion, made once; each scenario goes on with a copy of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.project import Project, month


@pytest.fixture(scope="session")
def bootstrapped(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """January landed, ingested, trained on: version 1 is champion. Not to be changed."""
    project = Project.create(tmp_path_factory.mktemp("bootstrapped") / "project")
    assert project.ingest(m2024_01=month("2024-01")).state == "success"
    assert project.retrain().state == "success"
    return project


@pytest.fixture
def project(bootstrapped: Project, tmp_path: Path) -> Project:
    """A project whose champion has learned from January."""
    return bootstrapped.copy(tmp_path / "project")


@pytest.fixture
def empty(tmp_path: Path) -> Project:
    """The same project before anything has landed."""
    return Project.create(tmp_path / "project")
