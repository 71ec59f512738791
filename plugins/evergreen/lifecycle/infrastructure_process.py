"""Clean processes for the infrastructure check: forked where that is possible, else fresh.

A fresh interpreter takes seconds of CPU to import what a model needs, at every check.
So a warm worker starts, in a clean environment, one process that imports it once, at the first
check, and forks a process for each: nothing of a trainer's, nor of another check's, is in it. Tasks
find it by ``EVERGREEN_INFRASTRUCTURE_FORKS``. Decision 29.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import evergreen
from evergreen.lifecycle import infrastructure_probe
from evergreen.workspace import QUIET

log = logging.getLogger(__name__)

ADDRESS = "EVERGREEN_INFRASTRUCTURE_FORKS"
#: What a process needs to start; credentials are not among it, the model is handed over as files.
_ENVIRONMENT = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OPENBLAS_NUM_THREADS",
    "PATH",
    "SYSTEMROOT",
    "TEMP",
    "TMP",
    "TMPDIR",
    "TZ",
)
#: What this process has started, each with the address before it. One ends when no process holds
#: the other end of its pipe.
_started: list[tuple[subprocess.Popen[bytes], str | None]] = []


def run(question: Path, answer: Path, *, timeout: float) -> tuple[int, str]:
    """Let a clean process answer, as `infrastructure_probe.main`.

    :returns: its exit code and what it said.
    :raises subprocess.TimeoutExpired: when it has been killed after ``timeout`` seconds.
    """
    if address := os.environ.get(ADDRESS):
        try:
            return _run_forked(address, question, answer, timeout)
        except ConnectionError as error:
            log.warning("A fresh interpreter checks, because there is %s", error)
    done = subprocess.run(  # noqa: S603 - our own interpreter and module, no shell
        [sys.executable, "-m", infrastructure_probe.__name__, question, answer],
        env=_environment(),
        cwd=answer.parent,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stderr


def start() -> None:
    """Let clean processes be forked for this process and those forked from it, while they live.

    Where that can't be, which is said, fresh interpreters go on checking.
    """
    if not hasattr(os, "pidfd_open"):
        return  # not Linux
    folder = Path(tempfile.mkdtemp(prefix="evergreen-"))
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "forks"))
            listener.listen(_Forks.max_children)  # who asks before it has started waits
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
                [sys.executable, "-m", __name__, str(listener.fileno())],
                env=_environment(),
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
            )
    except OSError as error:
        log.warning("Clean processes can't be forked (%s): each check starts afresh", error)
        shutil.rmtree(folder, ignore_errors=True)
        return
    _started.append((process, os.environ.get(ADDRESS)))
    os.environ[ADDRESS] = str(folder / "forks")


def stop() -> None:
    """End what `start` has started last; as it was before."""
    process, before = _started.pop()
    process.terminate()
    process.communicate()
    os.environ.pop(ADDRESS)
    if before is not None:
        os.environ[ADDRESS] = before


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return {**QUIET, **kept, "PYTHONPATH": str(Path(evergreen.__file__).parents[1])}


def _run_forked(address: str, question: Path, answer: Path, timeout: float) -> tuple[int, str]:
    """Ask for a forked process, which is killed when this one ends or no longer waits.

    :raises ConnectionError: when there is nobody who forks.
    """
    said = answer.with_suffix(".said")
    said.touch()  # a process that is killed at once has said nothing
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(address)
            connection.sendall(json.dumps([str(question), str(answer), str(said)]).encode() + b"\n")
            code = connection.recv(16)
        except TimeoutError as error:
            raise subprocess.TimeoutExpired(infrastructure_probe.__name__, timeout) from error
        except OSError as error:
            raise ConnectionError(f"nobody at {address} who forks one: {error}") from error
    if not code:
        raise ConnectionError(f"no answer from {address}, which forks them")
    return int(code), said.read_text(errors="replace")


class _Forks(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """A connection is a check: a child of ours waits for it, and for the process that answers."""

    max_children = 64
    block_on_close = False  # who asked waits, and ends what takes too long

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.getsockname(), _Check, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def service_actions(self) -> None:
        super().service_actions()
        if select.select([sys.stdin], [], [], 0)[0]:
            raise SystemExit  # nobody is left who could ask

    def process_request(self, request: Any, client_address: Any) -> None:
        infrastructure_probe.import_libraries()
        gc.freeze()
        super().process_request(request, client_address)


class _Check(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        question, answer, said = map(Path, json.loads(self.rfile.readline()))
        imported = infrastructure_probe.memory_mb("VmRSS", os.getppid())
        clean = os.fork()
        if not clean:
            _answer(question, answer, said, imported)
        end = os.pidfd_open(clean)
        ended = end in select.select([self.connection, end], [], [])[0]
        if not ended:
            os.kill(clean, signal.SIGKILL)  # who asked has gone, or waits no longer
        code = os.waitstatus_to_exitcode(os.waitpid(clean, 0)[1])
        if ended:
            self.wfile.write(b"%d" % code)


def _answer(question: Path, answer: Path, said: Path, imported_mb: float) -> None:
    """Become the clean process; never return."""
    code = 1
    try:
        output = os.open(said, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.chdir(answer.parent)
        infrastructure_probe.main(question, answer, imported_mb)
        code = 0
    except BaseException:  # noqa: BLE001 - said where who asked reads it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main(listener: int) -> None:
    """Fork clean processes until nobody holds the other end of our standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's: those who ask get it too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with _Forks(socket.socket(fileno=listener)) as forks:
        address = Path(str(forks.server_address))
        try:
            forks.serve_forever()
        finally:
            address.unlink()
            address.parent.rmdir()


if __name__ == "__main__":
    main(int(sys.argv[1]))
