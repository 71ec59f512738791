"""A name is held by one process at a time, and let go of by a dead one."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evergreen.errors import UnavailableError
from evergreen.ledger import Ledger


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


def test_holders_take_turns(url: str) -> None:
    inside, most = [0], [0]

    def hold(_: int) -> None:
        with Ledger(url).alone("feast/a"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            inside[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hold, range(8)))
    assert most == [1]


def test_names_do_not_disturb_each_other(url: str) -> None:
    with Ledger(url).alone("feast/a"), Ledger(url).alone("feast/b", patience=0):
        pass


def test_who_waits_too_long_is_told_for_what(url: str) -> None:
    with (
        Ledger(url).alone("feast/a"),
        pytest.raises(UnavailableError, match=r"has held 'feast/a' for more than 0\.1 s"),
        Ledger(url).alone("feast/a", patience=0.1),
    ):
        pytest.fail("two were inside")


def test_a_killed_holder_holds_nothing(url: str) -> None:
    ledger = Ledger(url)
    _ = ledger.engine
    ready, begun = os.pipe()
    if (pid := os.fork()) == 0:
        with ledger.alone("feast/a"):
            os.write(begun, b".")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with ledger.alone("feast/a", patience=0):
        pass
