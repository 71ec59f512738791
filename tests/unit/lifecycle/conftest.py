"""What many of these files stand on."""

from pathlib import Path

import pytest

from evergreen.workspace import Workspace
from tests.builders import workspace_in


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty one."""
    return workspace_in(tmp_path)
