"""Clean processes by fork: as good as fresh ones, and none outlives who asked for it."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from evergreen.lifecycle import infrastructure_process as processes

WAIT = 60.0


@pytest.fixture
def own() -> Iterator[psutil.Process]:
    """What forks clean processes for this one."""
    processes.start()
    yield psutil.Process(processes._started[-1][0].pid)
    processes.stop()


def _until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # between looks, until the deadline


@pytest.fixture
def asked(tmp_path: Path) -> SimpleNamespace:
    """A question about a model that isn't there."""
    question, answer = tmp_path / "in.json", tmp_path / "out.json"
    rows = tmp_path / "rows.parquet"
    question.write_text(json.dumps({"model": "none", "rows": str(rows), "task": "regression"}))
    return SimpleNamespace(question=question, answer=answer, rows=rows)


def test_each_check_has_a_process_of_its_own(
    own: psutil.Process, asked: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_TRAINER", "1")
    for _ in range(2):
        assert processes.run(asked.question, asked.answer, timeout=WAIT) == (0, "")
        assert "FileNotFoundError" in json.loads(asked.answer.read_text())["problem"]
        asked.answer.unlink()
    assert "SECRET_OF_THE_TRAINER" not in own.environ()
    threads = Path(f"/proc/{own.pid}/task").glob("*/comm")  # no thread is forked with its process
    # Arrow's allocator has one, and brings it up again after a fork.
    assert sorted(it.read_text() for it in threads) == ["jemalloc_bg_thd\n", "python\n"]
    _until(lambda: not own.children())


def test_it_is_said_what_ended_a_process(own: psutil.Process, asked: SimpleNamespace) -> None:
    asked.question.write_text("no question")
    code, said = processes.run(asked.question, asked.answer, timeout=WAIT)
    assert (code, asked.answer.exists()) == (1, False)
    assert "JSONDecodeError" in said


def test_a_process_is_killed_when_nobody_waits_for_it(
    own: psutil.Process, asked: SimpleNamespace
) -> None:
    processes.run(asked.question, asked.answer, timeout=WAIT)  # imports: the next is a fork alone
    os.mkfifo(asked.rows)  # whoever reads it waits for who writes
    with pytest.raises(subprocess.TimeoutExpired):
        processes.run(asked.question, asked.answer, timeout=1.0)
    _until(lambda: not own.children(recursive=True))


def test_it_ends_with_who_started_it() -> None:
    code = (
        "import os, sys; from evergreen.lifecycle import infrastructure_process as it; it.start();"
        "print(os.environ[it.ADDRESS], it._started[-1][0].pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        address, pid = starter.stdout.readline().split()
        forks = psutil.Process(int(pid))
        starter.send_signal(signal.SIGKILL)
    _until(lambda: not forks.is_running() or forks.status() == psutil.STATUS_ZOMBIE)
    assert not Path(address.decode()).parent.exists()


def test_where_none_can_be_forked_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    deep = tmp_path / ("x" * 100)  # an address has room for 108 bytes
    deep.mkdir()
    # What TMPDIR says is read once a process, which here it has been.
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    before = os.environ.get(processes.ADDRESS)
    with caplog.at_level(logging.WARNING):
        processes.start()
    assert "Clean processes can't be forked" in caplog.text
    assert (os.environ.get(processes.ADDRESS), list(deep.iterdir())) == (before, [])


def test_where_nobody_forks_a_fresh_interpreter_answers(
    asked: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(processes.ADDRESS, str(tmp_path / "nobody"))
    with caplog.at_level(logging.WARNING):
        assert processes.run(asked.question, asked.answer, timeout=WAIT)[0] == 0
    assert "A fresh interpreter checks" in caplog.text
    assert "FileNotFoundError" in json.loads(asked.answer.read_text())["problem"]
