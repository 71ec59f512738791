"""What several files stand on: a year that the demo has lived. It takes minutes, so once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.lived import MINUTES, Year


@pytest.fixture(scope="session")
def year(tmp_path_factory: pytest.TempPathFactory) -> Year:
    """A year of flights, lived once."""
    folder = tmp_path_factory.mktemp("year")
    report, home = folder / "report.json", folder / "home"
    command = [
        str(Path(sys.executable).with_name("evergreen")),
        *("demo", "--exit", "--home", str(home), "--report", str(report)),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=MINUTES * 60, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Year(json.loads(report.read_text()), done.stdout, home)
