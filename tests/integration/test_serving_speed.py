"""How many requests a replica answers, beside MLflow's own server with the same model.

The figures are printed; what is asserted are ratios. The servers take turns, and the middle turn
counts. A request's cost is the CPU time of the server's processes: whatever else the machine does
slows both servers and their client down, and is no part of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import psutil
import pytest

from tests.integration.fleet import WHOLE, Replica, Served, free_port
from tests.load.run import begin, figures
from tests.printing import Figure

pytestmark = [pytest.mark.minutes(2), pytest.mark.integration, pytest.mark.timeout(900)]

USERS = 8
TURNS = 5  # three left the middle one to what else a machine does


def test_it_answers_more_than_mlflows_server(tmp_path: Path, figure: Figure) -> None:
    served = Served.create(tmp_path / "project")
    for day in (1, 2):
        served.land(day)
    served.promote("first")
    turns: dict[str, list[dict[str, float]]] = {"mlflow": [], "evergreen": []}
    with _mlflow(served, tmp_path) as theirs, _evergreen(served) as ours:
        servers = {"mlflow": (theirs, 400), "evergreen": (ours, 1_600)}
        for name, (server, _) in servers.items():
            _asked(tmp_path, server, f"{name}-warm", 200)
        for turn in range(TURNS):
            for name, (server, requests) in servers.items():
                turns[name].append(_asked(tmp_path, server, f"{name}-{turn}", requests))
    for name, title in (("mlflow", "mlflow models serve"), ("evergreen", "evergreen serve")):
        middle = {key: median(turn[key] for turn in turns[name]) for key in turns[name][0]}
        figure(
            f"{title}: {middle['per_second']:.0f} requests/s, p50 {middle['p50']:.1f} ms, "
            f"p99 {middle['p99']:.1f} ms, {USERS} connections; "
            f"{middle['cpu']:.2f} ms of CPU a request"
        )
    pairs = list(zip(turns["evergreen"], turns["mlflow"], strict=True))
    for what in ("per_second", "cpu"):
        ratios = sorted(ours[what] / theirs[what] for ours, theirs in pairs)
        figure(f"evergreen / mlflow, {what}, by turn: {', '.join(f'{it:.2f}' for it in ratios)}")
    assert median(ours["cpu"] / theirs["cpu"] for ours, theirs in pairs) <= 1 / 3
    assert median(ours["p99"] / theirs["p99"] for ours, theirs in pairs) <= 1


@dataclass(frozen=True)
class Server:
    """A server that runs: its address, and its first process."""

    address: str
    pid: int

    def cpu(self) -> float:
        """Seconds that its processes have worked so far."""
        first = psutil.Process(self.pid)
        times = [process.cpu_times() for process in (first, *first.children(recursive=True))]
        return sum(it.user + it.system for it in times)


def _asked(folder: Path, server: Server, name: str, requests: int) -> dict[str, float]:
    """The same requests, from a second process: what `figures` says, and ``cpu``, ms a request."""
    before = server.cpu()
    load = begin(
        folder, server.address, ["/invocations"], WHOLE, name=name, requests=requests, users=USERS
    )
    answers = load.answers(timeout=300)
    assert [answer for answer in answers if answer.status != 200] == []
    cpu = (server.cpu() - before) / requests * 1000
    return {**figures(answers), "cpu": cpu}


@contextmanager
def _evergreen(served: Served) -> Iterator[Server]:
    replica = Replica(served, free_port(), "measured").start()
    try:
        assert replica.process is not None
        yield Server(replica.address, replica.process.pid)
    finally:
        replica.stop()


@contextmanager
def _mlflow(served: Served, folder: Path) -> Iterator[Server]:
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/example/1",
        "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_TRACKING_URI": served.workspace.tracking_uri}
    address, log = f"http://127.0.0.1:{port}", folder / "mlflow.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while not _pings(address):
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.2)  # between looks, until the deadline
        yield Server(address, process.pid)
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _pings(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ping", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
