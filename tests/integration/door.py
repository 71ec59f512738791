"""HAProxy before one server, so that a test can close it: then every request is answered 503."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from evergreen.standalone import HOST, free_port
from tests.integration.processes import Process, wait_until


@dataclass(frozen=True)
class Door:
    """The way to a server.

    :ivar url: where it is asked.
    """

    url: str
    control: Path

    def close(self) -> None:
        """Answer 503 from now on."""
        self._say("disable server there/it")

    def open(self) -> None:
        """Let requests through again."""
        self._say("enable server there/it")

    def _say(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(10)
            line.connect(str(self.control))
            line.sendall(f"{command}\n".encode())
            answer = line.recv(4096).decode().strip()
        assert not answer, f"haproxy answers {command!r} with {answer!r}"


@contextmanager
def door(port: int, folder: Path) -> Iterator[Door]:
    """A door before ``port`` of loopback; open at first."""
    program = shutil.which("haproxy")
    if program is None:
        pytest.skip("haproxy isn't installed (Debian: apt-get install haproxy)")
    settings, control, own = folder / "door.cfg", folder / "door.sock", free_port()
    settings.write_text(
        f"global\n  stats socket {control} mode 600 level admin\n"
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 90s\n  timeout server 90s\n"
        f"frontend here\n  bind {HOST}:{own}\n  default_backend there\n"
        f"backend there\n  server it {HOST}:{port}\n"
    )
    process = Process(
        "door",
        [program, "-db", "-f", str(settings)],
        environment={},
        folder=folder,
        log=folder / "door.log",
    )
    try:
        process.start()
        wait_until(control.exists, what="haproxy listens", timeout=20, of=[process])
        yield Door(f"http://{HOST}:{own}", control)
    finally:
        process.stop()
