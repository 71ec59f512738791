"""A replica as a process: ready when it says so, complete when told to stop, honest when killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from evergreen.serving.server import serve
from tests.served_models import Served, make_served

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
from pathlib import Path
from evergreen.declaration import read_declaration
from evergreen.serving.server import serve
from tests.builders import workspace_in
folder = Path(sys.argv[1])
serve([read_declaration(folder / "example")], workspace_in(folder), port=0, replica="one")
"""
ROW = {"temp": 90.0, "sky": "clear", "distance": 3.0}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    import yaml

    served = make_served(tmp_path_factory.mktemp("served"))
    content = served.declaration.model_dump(mode="json", exclude_defaults=True)
    (served.declaration.folder / "model.yaml").write_text(yaml.safe_dump(content))
    return served


@pytest.fixture
def replica(served: Served) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves the model, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(served.workspace.home)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()  # ends with the process, should it fail
        assert said.startswith("evergreen serves example on http://127.0.0.1:"), said
        yield process, said.split()[-1]
    finally:
        process.kill()
        process.wait(10)


def logged(served: Served) -> list[dict[str, Any]]:
    """Every line of the prediction log, shipped or not."""
    folders = (served.workspace.home / "serving", served.workspace.home / "store")
    files = {file.name.removesuffix(".open"): file for f in folders for file in f.rglob("*.jsonl*")}
    return [
        msgspec.json.decode(line)
        for file in files.values()
        for line in file.read_bytes().splitlines()
    ]


def ask(address: str, request_id: str, rows: int = 1) -> int:
    """Ask once; the status, 0 when there is nobody to answer."""
    try:
        return httpx.post(
            f"{address}/invocations",
            json={"inputs": [ROW] * rows},
            headers={"X-Request-Id": request_id},
            timeout=30,
        ).status_code
    except httpx.TransportError:
        return 0


def test_what_was_answered_outlives_a_kill(
    served: Served, replica: tuple[subprocess.Popen[str], str]
) -> None:
    process, address = replica
    with ThreadPoolExecutor(8) as pool:
        asked = {f"killed {k}": pool.submit(ask, address, f"killed {k}") for k in range(60)}
        next(future for future in list(asked.values())[5:]).result()
        process.kill()
        answered = {name for name, future in asked.items() if future.result() == 200}
    assert answered
    assert answered <= {line["request_id"] for line in logged(served)}


def test_a_stop_answers_what_is_under_way_and_ships_the_log(
    served: Served, replica: tuple[subprocess.Popen[str], str]
) -> None:
    process, address = replica
    with httpx.Client(base_url=address) as client:  # kept alive, and idle when the signal comes
        assert client.get("/ping").status_code == 200
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, address, f"stopped {k}", 300) for k in range(16)]
            asked[0].result()
            process.send_signal(signal.SIGTERM)
            statuses = [future.result() for future in asked]
    assert process.wait(30) == 0
    assert set(statuses) <= {200, 0}  # answered, or never accepted
    rows = [line for line in logged(served) if line["request_id"].startswith("stopped ")]
    assert len(rows) == 300 * statuses.count(200)
    spool = served.workspace.home / "serving" / "example" / "spool"
    assert not list(spool.glob("*.jsonl*"))  # the one that was killed left one: shipped too
    assert list((served.workspace.home / "store" / "served" / "example").rglob("*.jsonl"))


def test_a_port_that_is_taken_is_told_at_once(served: Served) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port} can't be listened on"):
            serve([served.declaration], served.workspace, port=port)
