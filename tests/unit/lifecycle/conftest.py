"""What many of these files stand on."""

from pathlib import Path

import pytest

from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in
from tests.past import Past


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty one."""
    return workspace_in(tmp_path)


@pytest.fixture
def past(tmp_path: Path) -> Past:
    """Version 1 is live; two of three drifting, or bad, days ask for a retrain."""
    often = {"violations": 2, "of": 3}
    declared = declare(tmp_path, triggers={"drift": often, "performance": often})
    begun = Past(workspace_in(tmp_path), declared)
    begun.promote("first")
    return begun
