"""The prediction log at a replica: lines that are on the disk before their answers leave it.

`Spool` writes them to segments, `Shipper` takes closed segments to the store, where
`evergreen.lifecycle.compaction` finds them; also those that a killed process left.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from evergreen.lifecycle.servedlines import segment_name
from evergreen.serving.segments import CLOSED, OPEN, Segment, claimed, sync_folder
from evergreen.store import Store

_log = logging.getLogger(__name__)


class Spool:
    """A folder of segments, of which this object writes one at a time. Safe for many threads.

    :param folder: made when it isn't there; other processes may share it.
    :param max_bytes: a segment isn't written beyond this; a larger batch has one of its own.
    :param max_age: seconds after which a segment is closed, by `append` or `roll_if_due`.
    :param sync: whether lines survive the machine's end, not only the process's.
    :param replica: who answers, a part of the segments' names; the machine's name by default.
    :param clock: seconds since 1970, for the segments' names.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 8 << 20,
        max_age: float = 30.0,
        sync: bool = True,
        replica: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.max_age = max_age
        self.sync = sync
        self.replica = re.sub(r"[^A-Za-z0-9_.]+", "_", replica or socket.gethostname())[:64]
        self._clock = clock
        self._lock = threading.Lock()
        self._segment: Segment | None = None
        self._closed = False
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, lines: Sequence[bytes]) -> None:
        """Write lines, all or none; they are durable when this returns.

        :param lines: each without its newline.
        :raises OSError: when the disk is full or broken; none of the lines counts then.
        :raises ValueError: for a line that is empty or holds a newline, or on a closed spool.
        """
        if not all(lines) or any(b"\n" in line for line in lines):
            raise ValueError("a line of the prediction log is empty or holds a newline")
        if not lines:
            return
        content = b"\n".join(lines) + b"\n"
        with self._lock:
            if self._closed:
                raise ValueError(f"the spool {self.folder} is closed")
            if self._segment is not None and self._is_due(self._segment, len(content)):
                self._roll()
            if self._segment is None:
                self._segment = Segment.begin(self.folder, self._name, sync=self.sync)
            try:
                self._segment.write(content)
            except OSError:
                self._roll()  # once it is shipped there may be room again
                raise

    def roll(self) -> None:
        """Close the segment, so that it can be shipped; the next line begins another one."""
        with self._lock:
            self._roll()

    def roll_if_due(self) -> None:
        """Close the segment if it is too old, though nothing more is written."""
        with self._lock:
            if self._segment is not None and self._is_due(self._segment, 0):
                self._roll()

    def close(self) -> None:
        """Close the segment and write no more. Harmless to repeat."""
        with self._lock:
            self._closed = True
            self._roll()

    def _is_due(self, segment: Segment, more: int) -> bool:
        old = time.monotonic() - segment.begun >= self.max_age
        return segment.size > 0 and (old or segment.size + more > self.max_bytes)

    def _roll(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.end()

    def _name(self) -> str:
        moment = datetime.fromtimestamp(self._clock(), UTC)
        return f"{moment:%Y%m%dT%H%M%S%fZ}-{self.replica}-{secrets.token_hex(4)}"


class Shipper(threading.Thread):
    """Takes closed segments to the store, and those that killed processes left open.

    A segment leaves the folder once the store has it, whole; one that was taken there before a
    crash is taken there again, under the same name. Shippers that share a folder lock the segment
    they take. What goes wrong is logged, kept in `problem` and tried again, at growing intervals.

    :param folder: the spool's.
    :param model: whose answers they are.
    :param spool: closed when it is too old, even when nothing more is written to it.
    :param every: seconds between two looks.
    :param longest: seconds between two looks at most, while the store can't be reached.
    :ivar problem: what the last look met; None when all went well.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        model: str,
        *,
        spool: Spool | None = None,
        every: float = 1.0,
        longest: float = 60.0,
    ) -> None:
        super().__init__(name=f"ship {model}", daemon=True)
        self.folder = folder
        self.store = store
        self.model = model
        self.problem: str | None = None
        self._spool = spool
        self._every = every
        self._longest = longest
        self._wake = threading.Event()
        self._ending = threading.Event()

    def run(self) -> None:
        """Look, ship, wait; until `stop`."""
        failures = 0
        while not self._ending.is_set():
            self._wake.clear()
            try:
                self.ship()
            except Exception as error:  # noqa: BLE001 - a store's vendor raises what it likes, and a thread that ended would leave answers behind unseen
                failures += 1
                self.problem = f"{type(error).__name__}: {error}"
                _log.warning("%s: segments wait in %s: %s", self.model, self.folder, self.problem)
            else:
                failures, self.problem = 0, None
            self._wake.wait(min(self._longest, self._every * 2.0 ** min(failures, 30)))

    def ship(self) -> int:
        """Take what is there to the store.

        :returns: how many segments went there.
        :raises UnavailableError: when the store can't be reached; what is left waits.
        """
        if self._spool is not None:
            self._spool.roll_if_due()
        for path in sorted(self.folder.glob(f"*{OPEN}")):
            self._close(path)
        return sum(self._take(path) for path in sorted(self.folder.glob(f"*{CLOSED}")))

    def waiting(self) -> int:
        """How many closed segments the store doesn't have yet."""
        return sum(1 for _ in self.folder.glob(f"*{CLOSED}"))

    def flush(self, timeout: float) -> bool:
        """Wait until the store has every closed segment, at most ``timeout`` seconds.

        :returns: whether it has; what it doesn't have waits for the next process.
        """
        until = time.monotonic() + timeout
        while self.waiting():
            if (left := until - time.monotonic()) <= 0:
                return False
            self._wake.set()
            self._ending.wait(min(0.05, left))  # the thread's progress shows in the folder only
        return True

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread, at most ``timeout`` seconds from now. Harmless to repeat."""
        self._ending.set()
        self._wake.set()
        if self.is_alive():
            self.join(timeout)

    def _close(self, path: Path) -> None:
        """Close a segment that a killed process left open."""
        with claimed(path) as there:
            if there and path.stat().st_size:
                path.rename(path.with_name(path.name.removesuffix(".open")))
            elif there:
                path.unlink()

    def _take(self, path: Path) -> bool:
        def copy(aside: Path) -> None:
            shutil.copyfile(path, aside)
            with aside.open("rb+") as copied:
                os.fsync(copied.fileno())

        with claimed(path) as there:
            if there:
                name = segment_name(self.model, path.name.removesuffix(CLOSED))
                self.store.write(name, copy)
                target = self.store.path(name)
                if target.protocol in ("", "file", "local"):
                    sync_folder(Path(target.path).parent)
                path.unlink()
            return there
