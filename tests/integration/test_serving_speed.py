"""How many requests a replica answers, beside MLflow's own server with the same model.

The figures are printed; what is asserted are ratios. The servers take turns, and the middle turn
counts: whatever else the machine does slows both down.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import pytest

from tests.integration.fleet import WHOLE, Replica, Served, free_port
from tests.load.run import Answer, begin, figures
from tests.printing import Figure

pytestmark = [pytest.mark.minutes(2), pytest.mark.integration, pytest.mark.timeout(900)]

USERS = 8
TURNS = 3


def test_it_answers_more_than_mlflows_server(tmp_path: Path, figure: Figure) -> None:
    served = Served.create(tmp_path / "project")
    for day in (1, 2):
        served.land(day)
    served.promote("first")
    answers: dict[str, list[list[Answer]]] = {"mlflow": [], "evergreen": []}
    with _mlflow(served, tmp_path) as theirs, _evergreen(served) as ours:
        servers = {"mlflow": (theirs, 400), "evergreen": (ours, 1_600)}
        for name, (address, _) in servers.items():
            _asked(tmp_path, address, f"{name}-warm", 200)
        for turn in range(TURNS):
            for name, (address, requests) in servers.items():
                answers[name].append(_asked(tmp_path, address, f"{name}-{turn}", requests))
    found = {name: [figures(each) for each in turns] for name, turns in answers.items()}
    for name, title in (("mlflow", "mlflow models serve"), ("evergreen", "evergreen serve")):
        p50, p99 = (median(it[key] for it in found[name]) for key in ("p50", "p99"))
        figure(
            f"{title}: {median(it['per_second'] for it in found[name]):.0f} requests/s, "
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, {USERS} connections"
        )
    pairs = list(zip(found["evergreen"], found["mlflow"], strict=True))
    times = sorted(ours["per_second"] / theirs["per_second"] for ours, theirs in pairs)
    figure(
        f"requests beside MLflow's, turn by turn: {', '.join(f'{it:.1f}' for it in times)} times"
    )
    assert median(times) >= 3
    assert median(ours["p99"] / theirs["p99"] for ours, theirs in pairs) <= 1


def _asked(folder: Path, address: str, name: str, requests: int) -> list[Answer]:
    """The same requests, from a second process."""
    load = begin(
        folder, address, ["/invocations"], WHOLE, name=name, requests=requests, users=USERS
    )
    answers = load.answers(timeout=300)
    assert [answer for answer in answers if answer.status != 200] == []
    return answers


@contextmanager
def _evergreen(served: Served) -> Iterator[str]:
    replica = Replica(served, free_port(), "measured").start()
    try:
        yield replica.address
    finally:
        replica.stop()


@contextmanager
def _mlflow(served: Served, folder: Path) -> Iterator[str]:
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
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _pings(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ping", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
