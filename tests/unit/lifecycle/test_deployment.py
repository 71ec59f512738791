"""What SageMaker is told of the live version."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from evergreen.declaration import Declaration, DeclarationError
from evergreen.ledger.tables import PromotionRow
from evergreen.lifecycle.deployment import _packed, plan
from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in
from tests.feature_sets import AS_OF
from tests.integration.services import s3

DEPLOY = {"image": "x:1", "role": "evergreen", "package_group": "models"}


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, Any]]:
    with s3() as service:
        service.create("evergreen")
        yield service.storage_options


@pytest.fixture
def workspace(tmp_path: Path, options: dict[str, Any]) -> Workspace:
    from evergreen.store import Store

    store = Store(f"s3://evergreen/{tmp_path.name}", options)
    return replace(
        workspace_in(tmp_path), store=store, tracking=lambda: "https://mlflow.example.com"
    )


def promote(workspace: Workspace, position: int, version: str) -> None:
    with workspace.ledger.write() as session:
        session.add(
            PromotionRow(
                model="example", position=position, run_id=f"r{position}", version=version,
                replaced=None, kind="promotion", reason="better", as_of=AS_OF, mlflow_run="m",
                model_uri="u", snapshot_uri="s", snapshot_digest="d", trained_through=AS_OF,
                origin={}, person=None,
            )
        )  # fmt: skip


def declared(folder: Path, **changed: Any) -> Declaration:
    return declare(folder, sagemaker={**DEPLOY, **changed})


def test_nothing_is_told_while_nothing_is_live(tmp_path: Path, workspace: Workspace) -> None:
    assert plan(declared(tmp_path), workspace) is None


def test_names_follow_from_version_and_declaration(tmp_path: Path, workspace: Workspace) -> None:
    promote(workspace, 1, "7")
    first = plan(declared(tmp_path), workspace)
    assert first is not None
    assert plan(declared(tmp_path), workspace) == first
    assert first.name.startswith("example-")
    assert first.name.endswith("-v7")
    changed = plan(declared(tmp_path, image="x:2"), workspace)
    assert changed is not None
    assert changed.name != first.name
    promote(workspace, 2, "6")  # a rollback
    back = plan(declared(tmp_path), workspace)
    assert back is not None
    assert (back.version, back.name) == ("6", f"{first.name[:-1]}6")
    with tarfile.open(fileobj=BytesIO(workspace.store.read_bytes(back.archive))) as tar:
        assert tar.getnames() == ["evergreen.json"]


def test_an_archive_of_the_same_content_has_the_same_bytes() -> None:
    assert _packed({"version": "1"}) == _packed({"version": "1"})


def test_a_store_that_sagemaker_can_not_read_is_refused(tmp_path: Path) -> None:
    workspace = replace(workspace_in(tmp_path), tracking=lambda: "https://mlflow.example.com")
    with pytest.raises(DeclarationError, match="which SageMaker can't reach"):
        plan(declared(tmp_path), workspace)


def test_what_is_not_declared_is_not_deployed(tmp_path: Path, workspace: Workspace) -> None:
    with pytest.raises(DeclarationError, match="no section sagemaker"):
        plan(declare(tmp_path), workspace)
