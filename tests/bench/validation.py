"""Validation of a month of flights: Great Expectations the first time, kept results the second.

The process has validated another month before, so that the first time costs what a new partition
costs in a warm worker.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from evergreen.declaration import read_declaration
from evergreen.foreground import Foreground
from evergreen.workspace import Workspace
from tests.bench.figures import Figure
from tests.bench.flights import FOLDER, MODEL_FOLDER, MONTHS, land
from tests.bench.script import NOW

ROUNDS = 3


def measure() -> Iterator[Figure]:
    """Milliseconds of both, and their ratio."""
    home = FOLDER / "home"
    declaration = read_declaration(MODEL_FOLDER)
    workspace = Workspace.from_environment({"EVERGREEN_HOME": str(home)})

    def seconds() -> float:
        stages = Foreground(declaration, workspace, NOW)
        assert stages.snapshot.rows  # computed now, and not while the clock runs
        began = time.perf_counter()
        assert not stages.validation.blocked
        return time.perf_counter() - began

    first = 0.0
    for key in MONTHS[:2]:
        land(home, key)
        Foreground(declaration, workspace, NOW).ingest()
        first = seconds()
    again = min(seconds() for _ in range(ROUNDS))
    yield Figure("first time", 1000 * first, "ms", detail="one new month beside a known one")
    yield Figure("again", 1000 * again, "ms", detail=f"best of {ROUNDS}; both months known")
    yield Figure("kept results are faster by", first / again, "×")
