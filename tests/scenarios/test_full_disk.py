"""A store without room: the run fails and says so, leaves nothing half-written, and the next one
finishes as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.project import Project, month

pytestmark = pytest.mark.dags

ROOM = "64m"


@pytest.fixture
def tight(empty: Project) -> Iterator[Project]:
    """A project whose store is a small file system of its own."""
    store = empty.home / "store"
    store.mkdir(parents=True)
    if os.geteuid():
        pytest.skip("a file system of its own can be mounted by root alone")
    options = ["-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(store)]
    subprocess.run(["mount", *options], check=True, timeout=10)
    try:
        yield empty
    finally:
        subprocess.run(["umount", "--lazy", str(store)], check=True, timeout=10)


def _fill(filler: Path, left: int) -> None:
    """Leave that many bytes."""
    room = os.statvfs(filler.parent)
    filler.write_bytes(b"\0" * (room.f_bavail * room.f_frsize - left))


@pytest.mark.parametrize("left", [0, 16_384, 65_536])
def test_a_full_store_fails_a_run_and_the_next_one_finishes(
    tight: Project, bootstrapped: Project, left: int
) -> None:
    assert tight.ingest(m2024_01=month("2024-01")).state == "success"
    filler = tight.home / "store" / "filler"
    _fill(filler, left)
    run = tight.retrain()
    failed = [task for task, state in run.states.items() if state == "failed"]
    assert run.state == "failed"
    assert len(failed) == 1
    assert f"the store at file://{tight.home}/store can't be reached" in run.logs[failed[0]]
    assert "No space left on device" in run.logs[failed[0]]
    assert tight.last("promotion") is None

    for path in (tight.home / "store" / "documents").rglob("*.json"):
        assert json.loads(path.read_text()), "half-written"
    assert not list((tight.home / "store").rglob("*.aside-*"))
    filler.unlink()
    run = tight.retrain()
    assert (run.state, run.states["promote"]) == ("success", "success"), run.logs
    ours, theirs = tight.last("promotion"), bootstrapped.last("promotion")
    for name in ("version", "kind", "reason", "as_of", "replaced", "position"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert tight.last("verdict").reason == bootstrapped.last("verdict").reason
    assert set(tight.versions()) == {"1"}
