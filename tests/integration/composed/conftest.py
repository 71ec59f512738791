"""One topology of docker-compose.yaml for the files of this folder; each deploys its own models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from tests.integration import services
from tests.integration.door import Door, door
from tests.integration.processes import alive
from tests.integration.topology import Topology, topology


@dataclass(frozen=True)
class Composed:
    """What runs.

    :ivar way: what stands before S3.
    """

    it: Topology
    way: Door


@pytest.fixture(scope="package")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """Everything but the replicas, without a model; nothing of it may be left afterwards."""
    folder = tmp_path_factory.mktemp("composed")
    for name in ("dags", "include", "running"):
        (folder / name).mkdir()
    with services.s3(own=True) as s3, door(s3.port, folder) as way:
        with topology(
            folder / "running",
            dags=folder / "dags",
            include=folder / "include",
            s3=replace(s3, url=way.url),
        ) as it:
            yield Composed(it, way)
            pids = set().union(*(process.pids for process in it.processes.values()))
        assert len(pids) > 8
        deadline = time.monotonic() + 10
        while left := [pid for pid in pids if alive(pid)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)  # between looks, until the deadline
