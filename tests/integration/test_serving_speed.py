"""How many requests a replica answers, beside MLflow's own server with the same model.

The figures are printed (``-s``, or in the report of a failure); what is asserted are ratios of the
two servers, measured one after the other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.fleet import WHOLE, Replica, Served, free_port
from tests.load.run import begin, figures
from tests.printing import Figure

pytestmark = [pytest.mark.minutes(2), pytest.mark.integration, pytest.mark.timeout(900)]

USERS = 8


@pytest.mark.alone
def test_it_answers_more_than_mlflows_server(tmp_path: Path, figure: Figure) -> None:
    served = Served.create(tmp_path / "project")
    for day in (1, 2):
        served.land(day)
    served.promote("first")
    theirs = _measure(tmp_path, _mlflow(served, tmp_path), "mlflow", 1_500)
    ours = _measure(tmp_path, _evergreen(served), "evergreen", 6_000)
    for name, found in (("mlflow models serve", theirs), ("evergreen serve", ours)):
        figure(
            f"{name}: {found['per_second']:.0f} requests/s, p50 {found['p50']:.1f} ms, "
            f"p99 {found['p99']:.1f} ms, {USERS} connections"
        )
    assert ours["per_second"] >= 3 * theirs["per_second"]
    assert ours["p99"] <= theirs["p99"]


def _measure(folder: Path, server: Iterator[str], name: str, requests: int) -> dict[str, float]:
    """The same requests, from a second process, to a warm server; it is ended afterwards."""
    address = next(server)
    try:
        for part, count in (("warm", 200), ("measured", requests)):
            load = begin(
                folder, address, ["/invocations"], WHOLE, name=f"{name}-{part}", requests=count,
                users=USERS,
            )  # fmt: skip
            answers = load.answers(timeout=300)
            assert [a for a in answers if a.status != 200] == []
    finally:
        server.close()  # type: ignore[attr-defined]  # a generator's
    return figures(answers)


def _evergreen(served: Served) -> Iterator[str]:
    replica = Replica(served, free_port(), "measured").start()
    try:
        yield replica.address
    finally:
        replica.stop()


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
