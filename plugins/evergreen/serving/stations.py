"""Threads beside the one that answers for the champion, each with what waits for it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from threading import Condition, Thread
from time import perf_counter
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from evergreen.serving.outcomes import AT_STORE, Outcome, Waiting
from evergreen.serving.predicting import Question, by_version, look_up
from evergreen.serving.refusals import RequestError

if TYPE_CHECKING:
    from evergreen.serving.online import OnlineFeatures

_log = logging.getLogger(__name__)
#: Rows that a station takes at once; one request with more is taken alone.
BATCH_ROWS = 512
T = TypeVar("T", Waiting, Question)


class Desk(Protocol):
    """Where requests come back to; see `evergreen.serving.answering.Answerer`."""

    def settle(self, outcomes: Sequence[tuple[Waiting, Outcome]]) -> None:
        """Tell those who wait."""

    def give_back(self, waiting: Sequence[Waiting]) -> None:
        """Let requests have their turn, before those that came later."""


class Station(ABC, Generic[T]):
    """A thread and a queue. What it can't do in time never keeps anybody else.

    :ivar requests: how many wait for it or are in its hands.
    :ivar rows: of those.
    :param name: of its thread.
    """

    def __init__(self, name: str) -> None:
        self.requests = self.rows = self._at_hand = 0
        self._changed = Condition()
        self._queue: deque[T] = deque()
        self._stopping = False
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Take no more, and end after what is at hand."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def put(self, items: Iterable[T]) -> None:
        """Let so much wait for its turn here."""
        items = list(items)
        if not items:
            return
        with self._changed:
            for item in items:
                self._queue.append(item)
                self.requests += 1
                self.rows += item.asked.rows
            self._changed.notify_all()

    @abstractmethod
    def _do(self, taken: Sequence[T]) -> None:
        """Do the station's work on what waited together."""

    def _failed(self, taken: Sequence[T]) -> None:
        """What becomes of what nobody foresaw; it is logged already."""

    def _ready(self) -> bool:
        """Whether there is something to take. Asked under the lock."""
        return bool(self._queue)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready() or self._stopping)
                if self._stopping:
                    return
                taken = self._take()
            try:
                self._do(taken)
            except Exception:  # noqa: BLE001 - the thread must outlive what nobody foresaw
                if not self._stopping:
                    _log.exception("%s: a batch failed", self._thread.name)
                    self._failed(taken)
            with self._changed:
                self._forget(taken)
                self._at_hand = 0

    def _take(self) -> list[T]:
        """What waits, up to a batch; the first in any case."""
        taken: list[T] = []
        rows = 0
        while self._queue and (not taken or rows + self._queue[0].asked.rows <= BATCH_ROWS):
            taken.append(self._queue.popleft())
            rows += taken[-1].asked.rows
        self._at_hand = rows
        return taken

    def _forget(self, items: Sequence[T]) -> None:
        self.requests -= len(items)
        self.rows -= sum(item.asked.rows for item in items)


class Lookups(Station[Waiting]):
    """Asks the online store for the features of requests that bring only their keys.

    A store that is slow keeps those who need it, and nobody else.
    """

    def __init__(self, name: str, online: OnlineFeatures, desk: Desk) -> None:
        super().__init__(f"look up {name}")
        self._online, self._desk = online, desk

    def put(self, items: Iterable[Waiting]) -> None:
        """Let requests wait for their features; the time until they have them is the store's."""
        waiting, now = list(items), perf_counter()
        for each in waiting:
            each.held_by = AT_STORE
            each.store_seconds -= now  # until it is given back
        super().put(waiting)

    def _do(self, taken: Sequence[Waiting]) -> None:
        for questions in by_version(each.question for each in taken if each.question):
            look_up(questions, self._online)
        self._give_back(taken)

    def _failed(self, taken: Sequence[Waiting]) -> None:
        for waiting in taken:
            if waiting.question is not None:
                reason = "the request could not be answered"
                waiting.question.error = RequestError(500, "internal", reason)
        self._give_back(taken)

    def _give_back(self, taken: Sequence[Waiting]) -> None:
        now = perf_counter()
        for waiting in taken:
            waiting.looked, waiting.held_by = True, None
            waiting.store_seconds += now
        self._desk.give_back(taken)
