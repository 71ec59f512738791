"""Segments of the prediction log as files: written by one process, taken over when it is gone.

A segment ends in ``.jsonl.open`` and is locked while a process writes it. Closing drops ``.open``.
The lock is the kernel's, and goes with its process: a segment that says open and isn't locked was
left by a process that was killed.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

OPEN, CLOSED = ".jsonl.open", ".jsonl"
_ATTEMPTS = 8  # at a name of its own for a new segment; a shipper can take an empty one away
_sync_data = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter


class Segment:
    """A segment that this process writes, and holds the lock of.

    :ivar size: bytes of whole batches, all that counts.
    :ivar begun: when it was begun, in seconds of `time.monotonic`.
    """

    def __init__(self, path: Path, handle: int, *, sync: bool) -> None:
        self.path = path
        self.size = 0
        self.begun = time.monotonic()
        self._handle = handle
        self._sync = sync

    @classmethod
    def begin(cls, folder: Path, name: Callable[[], str], *, sync: bool) -> Segment:
        """A new segment that nobody takes for a killed process's."""
        for _ in range(_ATTEMPTS):
            path = folder / f"{name()}{OPEN}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            handle = os.open(path, flags, 0o660)
            try:
                if _locked(handle) and _is(path, handle):
                    if sync:
                        sync_folder(folder)
                    return cls(path, handle, sync=sync)
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # a shipper saw it before it was locked, and swept it
        raise OSError(f"no segment could be begun in {folder}: each was taken away at once")

    def write(self, content: bytes) -> None:
        """Add a batch; when that fails, cut off what was written of it: nobody was promised it.

        :raises OSError: when the disk is full or broken. Nothing more may be written then: what
            the kernel could not sync it may forget, and say next time that all is well.
        """
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            if self._sync:
                _sync_data(self._handle)
        except OSError:
            os.ftruncate(self._handle, self.size)
            raise
        self.size += len(content)

    def end(self) -> None:
        """Close it under its final name; one that holds nothing goes away."""
        try:
            if self.size:
                self.path.rename(self.path.with_name(self.path.name.removesuffix(".open")))
            else:
                self.path.unlink()
            if self._sync:
                sync_folder(self.path.parent)
        finally:
            fcntl.flock(self._handle, fcntl.LOCK_UN)  # also for a child that was forked meanwhile
            os.close(self._handle)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold a segment's lock for a block; False when another process holds it or took it away."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _locked(handle) and _is(path, handle)
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Lock an open file until it is closed, or say that another one has."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(path: Path, handle: int) -> bool:
    """Whether an open file still is what its path names."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Make names in a folder outlive the machine's end."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
