"""Note every import that a process really pays for: outermost module, seconds, what came with it.

`sys.modules` answers what is imported already, and that is free. What is not goes through
importlib's ``_find_and_load``, for an import statement and for `importlib.import_module` alike,
so that is where time is taken. Processes forked later keep noting, into the same file.
"""

from __future__ import annotations

import importlib._bootstrap
import json
import os
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evergreen.executors import WarmLocalExecutor
from tests.bench.parsing import LIBRARIES

importer: Any = importlib._bootstrap
FILE = "EVERGREEN_BENCH_IMPORTS"
#: Seconds from which on an import is worth preloading.
COSTLY = 0.01


@dataclass(frozen=True)
class Import:
    """One outermost import.

    :ivar pid: the process that paid.
    :ivar at: seconds since the epoch, when it began.
    :ivar modules: the entries of `sys.modules` that it brought.
    """

    pid: int
    at: float
    name: str
    seconds: float
    modules: tuple[str, ...]

    @property
    def libraries(self) -> set[str]:
        """The ML libraries among what was brought."""
        return {module.partition(".")[0] for module in self.modules} & LIBRARIES


def record(file: Path) -> None:
    """Note this process's imports, and its children's, from now on."""
    find_and_load, local = importer._find_and_load, threading.local()

    def timed(name: str, import_: Any) -> Any:
        if name in sys.modules or getattr(local, "inside", False):
            return find_and_load(name, import_)
        local.inside, before = True, set(sys.modules)
        at, began = time.time(), time.perf_counter()
        try:
            return find_and_load(name, import_)
        finally:
            seconds, local.inside = time.perf_counter() - began, False
            modules = tuple(sorted(set(sys.modules) - before))
            _append(file, Import(os.getpid(), at, name, seconds, modules))

    importer._find_and_load = timed


def recorded(file: Path) -> list[Import]:
    """What was noted so far, in order."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [Import(**json.loads(line)) for line in lines]


def named(imports: Iterable[Import]) -> str:
    """The imports that are worth a word, the costliest first."""
    worth = sorted((it for it in imports if it.seconds >= COSTLY), key=lambda it: -it.seconds)
    return ", ".join(f"{it.name} {1000 * it.seconds:.0f} ms" for it in worth[:8])


def _append(file: Path, noted: Import) -> None:
    """One write of one line: processes that append at once don't mix."""
    line = json.dumps(asdict(noted)) + "\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


class RecordingExecutor(WarmLocalExecutor):
    """The warm executor, whose forked workers note what they import into ``$EVERGREEN_BENCH_IMPORTS``."""

    def _spawn_worker(self) -> None:
        if importer._find_and_load.__name__ != "timed":
            record(Path(os.environ[FILE]))
        super()._spawn_worker()  # type: ignore[no-untyped-call]  # Airflow's
