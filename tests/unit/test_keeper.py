"""The keeper's sessions: found whole, ended whole."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

from evergreen import keeper

#: A process that leaves its process group, as Airflow's tasks do, below one that leads a session.
FAMILY = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import os, time; os.setpgid(0, 0); time.sleep(60)"])
time.sleep(60)
"""


def eventually(condition: Callable[[], bool], timeout: float = 20.0) -> bool:
    """Return whether `condition` comes true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)  # between looks, until the deadline
    return condition()


def test_a_session_is_found_and_ended_across_process_groups() -> None:
    with subprocess.Popen([sys.executable, "-c", FAMILY], start_new_session=True) as leader:
        assert eventually(lambda: len(keeper.members(leader.pid)) == 2)
        assert os.getpid() not in keeper.members(leader.pid)
        keeper.kill_session(leader.pid)
        assert keeper.members(leader.pid) == set()


def test_a_session_that_is_gone_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], start_new_session=True) as leader:
        leader.wait()
    keeper.kill_session(leader.pid)
