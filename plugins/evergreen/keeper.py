"""Run Airflow's components below one process that outlives none of them and not its parent.

Started as a script, it leads a session of its own. It ends when the pipe to its parent closes,
which the kernel does however the parent dies, and takes the whole session with it: tasks too,
which Airflow puts in process groups of their own, out of reach of a signal to one group.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

SCHEDULER = ("scheduler", "--skip-serve-logs")  # logs are read from disk: no listener for them
OTHERS = (("api-server",), ("dag-processor",), ("triggerer", "--skip-serve-logs"))
#: Seconds that the scheduler gets to end its tasks.
GRACE = 15.0


def members(session: int) -> set[int]:
    """Return the living processes of a session."""
    found = set()
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return found


def kill_session(session: int, timeout: float = 5.0) -> None:
    """Kill every process of `session` but the caller, and wait until they are gone."""
    deadline = time.monotonic() + timeout
    while (left := members(session) - {os.getpid()}) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)  # between looks, until the deadline


def keep() -> int:
    """Run Airflow until the parent closes our stdin (0), or one of the components ends (1)."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        migrate = _airflow("db", "migrate")
        if _parent_left(migrate):
            return 0
        if migrate.returncode:
            return 1
        scheduler = _airflow(*SCHEDULER)
        parent_left = _parent_left(scheduler, *(_airflow(*component) for component in OTHERS))
        # Tasks that end now still report to the API server; nothing else holds anything to save.
        scheduler.terminate()
        with suppress(subprocess.TimeoutExpired):
            scheduler.wait(GRACE)
        return 0 if parent_left else 1
    finally:
        kill_session(os.getpid())


def _airflow(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "airflow", *arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 (our own words)


def _parent_left(*processes: subprocess.Popen[bytes]) -> bool:
    """Wait until the parent closes our stdin, or until one of `processes` ends (False)."""
    while all(process.poll() is None for process in processes):
        if select.select([sys.stdin], [], [], 0.1)[0]:
            return True
    return False


if __name__ == "__main__":
    sys.exit(keep())
