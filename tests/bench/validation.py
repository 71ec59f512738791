"""Validation of a month of flights: Great Expectations the first time, kept results the second.

The process has imported everything and validated another month, so that the first time costs what
a new partition costs in a warm worker.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

from evergreen.declaration import read_declaration
from evergreen.foreground import Foreground
from evergreen.workspace import Workspace
from tests.bench.figures import Figure
from tests.bench.flights import FOLDER, MODEL_FOLDER, MONTHS, land

ROUNDS = 3


def measure() -> Iterator[Figure]:
    """Seconds of both, and their ratio."""
    home = FOLDER / "validation"
    declaration = read_declaration(MODEL_FOLDER)
    workspace = Workspace.from_environment({"EVERGREEN_HOME": str(home)})

    def seconds(as_of: datetime) -> float:
        stages = Foreground(declaration, workspace, as_of)
        rows = stages.snapshot.rows
        began = time.perf_counter()
        stages.validation  # noqa: B018 - computed when it is asked for
        return (time.perf_counter() - began) * (1 if rows else 0)

    first = {}
    for key in MONTHS[:2]:
        land(home, key)
        end = declaration.data.partition.end(key)
        Foreground(declaration, workspace, datetime(2026, 1, 1, tzinfo=UTC)).ingest()
        first[key] = seconds(end)
    again = min(seconds(end) for _ in range(ROUNDS))
    yield Figure("first time", first[key], "s", detail="one new month beside a known one")
    yield Figure("again", again, "s", detail=f"best of {ROUNDS}; both months known")
    yield Figure("kept results are faster by", first[key] / again, "×")
