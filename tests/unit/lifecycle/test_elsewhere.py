"""What another machine can reach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from evergreen.declaration import DeclarationError
from evergreen.lifecycle.elsewhere import check_reachable
from evergreen.store import Store
from tests.builders import workspace_in


@pytest.mark.parametrize(
    ("store", "tracking", "words"),
    [
        ("file:///x", "https://mlflow", "SageMaker can't reach"),
        ("/x", "https://mlflow", "SageMaker can't reach"),
        ("s3://b/x", "sqlite:////x/mlflow.db", "Run an MLflow server"),
        ("s3://b/x", "postgresql://me:hush@db/mlflow", "Run an MLflow server"),
        ("s3://b/x", "https://me:hush@mlflow", "holds a login"),
    ],
)
def test_what_can_not_be_reached_from_elsewhere_is_said(
    tmp_path: Path, store: str, tracking: str, words: str
) -> None:
    workspace = replace(workspace_in(tmp_path), store=Store(store), tracking=lambda: tracking)
    with pytest.raises(DeclarationError, match=words) as error:
        check_reachable(workspace)
    assert "hush" not in str(error.value)
