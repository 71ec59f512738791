"""A program run for a test, in a session of its own that doesn't outlive the test.

Run as a script it is the guard: it starts the program, and ends it, with all it has started, when
the pipe to the test closes. The kernel closes that however the test dies.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from evergreen import keeper

#: Seconds that a program gets to end by itself.
GRACE = 15.0


class Process:
    """A program that can be started, stopped, killed and held, again and again.

    :param command: the program and its arguments.
    :param environment: all of its variables; nothing is inherited.
    :param folder: where it works.
    :param log: what it prints is added there.
    :param ending: the signal that asks it to end.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        log: Path,
        ending: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.environment = dict(environment)
        self.folder = folder
        self.log = log
        self.ending = ending
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._guard is not None and self._guard.poll() is None

    @property
    def returncode(self) -> int | None:
        """How it ended by itself; None while it runs, and after it was stopped."""
        return self._guard.poll() if self._guard else None

    @property
    def pid(self) -> int:
        """The program's own process.

        :raises AssertionError: when it doesn't run.
        """
        deadline = time.monotonic() + 5
        while self.running and time.monotonic() < deadline:
            assert self._guard is not None
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self._guard.pid).children():
                    return child.pid
            time.sleep(0.01)  # the guard has just been started
        raise AssertionError(f"{self.name} doesn't run:\n{self.tail()}")

    @property
    def pids(self) -> set[int]:
        """The program and all it has started, in sessions of their own too (PostgreSQL's are)."""
        if self._guard is None:
            return set()
        found = keeper.members(self._guard.pid)
        with suppress(psutil.NoSuchProcess):
            found |= {it.pid for it in psutil.Process(self._guard.pid).children(recursive=True)}
        return found - {self._guard.pid}

    def start(self) -> None:
        """Start it; do nothing while it runs."""
        if self.running:
            return
        with self.log.open("ab") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-P", __file__, str(int(self.ending)), *self.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )

    def stop(self, timeout: float = GRACE + 5) -> None:
        """Ask it to end, and make sure that it and all it has started did."""
        self.resume()
        guard, self._guard = self._guard, None
        if guard is None or guard.stdin is None:
            return
        guard.stdin.close()
        try:
            guard.wait(timeout)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
        finally:
            keeper.kill_session(guard.pid)

    def kill(self) -> None:
        """SIGKILL it and all it has started, as a container's end would."""
        self._send(signal.SIGKILL)
        self.stop()  # the guard reaps it: what died but isn't reaped counts as alive for PostgreSQL

    def pause(self) -> None:
        """Let it hang: it keeps its connections and answers nothing."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._send(signal.SIGCONT)

    def tail(self, lines: int = 40) -> str:
        """The end of what it printed."""
        if not self.log.exists():
            return f"({self.name} has printed nothing)"
        printed = self.log.read_text(errors="replace").splitlines()
        return "\n".join([*printed[-lines:], f"(the whole log of {self.name}: {self.log})"])

    def _send(self, which: signal.Signals) -> None:
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, which)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped doesn't."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(
    check: Callable[[], Any], *, what: str, timeout: float, of: Sequence[Process] = ()
) -> None:
    """Ask ``check`` until it says yes.

    :param of: processes that must live for that.
    :raises AssertionError: after ``timeout`` seconds, or when one of ``of`` has ended; with the
        end of their logs.
    """
    deadline = time.monotonic() + timeout
    while not check():
        ended = [process.name for process in of if not process.running]
        late = time.monotonic() > deadline
        if ended or late:
            why = f"{', '.join(ended)} ended" if ended else f"not within {timeout:g} s"
            logs = "\n".join(f"--- {process.name}\n{process.tail()}" for process in of)
            raise AssertionError(f"{what}: {why}\n{logs}")
        time.sleep(0.1)  # between looks, until the deadline


def guard(ending: int, command: Sequence[str]) -> int:
    """Run ``command`` until it ends, or until the test closes our stdin."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        ended = os.pidfd_open(child.pid)
        select.select([sys.stdin, ended], [], [])  # as long as the test lasts
        if child.poll() is None:
            child.send_signal(ending)
        return child.wait(GRACE)
    except subprocess.TimeoutExpired:
        return 1
    finally:
        keeper.kill_session(os.getpid())


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), sys.argv[2:]))
