"""Requests that wait are answered together, by one thread a model: micro-batching.

What waits when the thread is free is one batch: nobody waits for company, and under load batches
grow by themselves. What is done with a batch says `evergreen.serving.batching`; a request that
needs more than the champion leaves the thread for it, and comes back in front.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from threading import Condition, Thread
from time import monotonic
from typing import TYPE_CHECKING

from evergreen.serving.batching import Batches
from evergreen.serving.outcomes import Outcome, Waiting
from evergreen.serving.payloads import Asked
from evergreen.serving.refusals import RequestError
from evergreen.serving.stations import BATCH_ROWS

if TYPE_CHECKING:
    from evergreen.serving.versions import Version

_log = logging.getLogger(__name__)
#: Requests and rows that may wait; more are turned away.
WAITING_REQUESTS, WAITING_ROWS = 512, 20_000
#: Seconds after which a client is told that its answer takes too long.
PATIENCE = 30.0
#: Seconds at one batch after which a model is said to hang.
HANGING = 60.0


_ENDING = 0.05


class Answerer:
    """Answers one model's requests.

    :param name: the model's.
    """

    def __init__(self, name: str, batches: Batches) -> None:
        self._name, self._batches = name, batches
        self._changed = Condition()
        self._waiting: deque[Waiting] = deque()
        self._back: deque[Waiting] = deque()
        self._rows = 0
        self._stopping = False
        self._since: float | None = None
        self._thread = Thread(target=self._run, name=f"answer {name}", daemon=True)

    @property
    def hanging(self) -> float | None:
        """Seconds that the thread has been at one batch, when they are more than `HANGING`."""
        since = self._since
        passed = 0.0 if since is None else monotonic() - since
        return passed if passed > HANGING else None

    @property
    def given_up(self) -> tuple[Version, str] | None:
        """A candidate that isn't asked any more, and why."""
        return self._batches.given_up

    def start(self) -> None:
        """Begin to answer."""
        self._batches.start(self)
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> bool:
        """Take no more; answer what waits, for at most ``timeout`` seconds.

        :returns: whether all was answered.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._batches.stop(min(timeout, 3.0))
        return not self._thread.is_alive()

    async def answer(self, asked: Asked, request_id: str) -> Outcome:
        """Wait for a request's turn, and what becomes of it.

        One that takes too long is charged to the version that is at work then, if one is.

        :raises RequestError: 429 when too many wait; 503 at the end.
        """
        loop = asyncio.get_running_loop()
        waiting = Waiting(asked, request_id, loop.create_future(), loop)
        self._submit(waiting)
        try:
            async with asyncio.timeout(PATIENCE):
                return await waiting.future
        except TimeoutError:
            reason = f"no answer within {PATIENCE:g} s"
            error = RequestError(504, "too_slow", reason, retry_after=1)
            version, role = waiting.held_by or self._batches.at_work
            return Outcome(error=error, version=version, role=role)

    def _submit(self, waiting: Waiting) -> None:
        with self._changed:
            if self._stopping:
                raise RequestError(503, "stopping", "this replica stops", retry_after=1)
            requests, rows = self._batches.aside
            requests, rows = requests + len(self._waiting) + len(self._back), rows + self._rows
            if requests >= WAITING_REQUESTS or (
                requests and rows + waiting.asked.rows > WAITING_ROWS
            ):
                reason = f"{requests} requests wait; ask again, more slowly"
                raise RequestError(429, "busy", reason, retry_after=1)
            self._waiting.append(waiting)
            self._rows += waiting.asked.rows
            self._changed.notify()

    def give_back(self, waiting: Sequence[Waiting]) -> None:
        """Let requests that were aside have their turn next."""
        with self._changed:
            self._back.extend(waiting)
            self._rows += sum(each.asked.rows for each in waiting)
            self._changed.notify()

    def _run(self) -> None:
        """Answer batch after batch, until stopped and nothing waits, here or aside."""
        while batch := self._next():
            self._since = monotonic()
            self.settle(self._answer(batch))
            self._since = None

    def _next(self) -> list[Waiting]:
        """The next batch, once there is one; none at the end."""
        with self._changed:
            if not self._waiting and not self._back:
                self._batches.rest()
            while not self._waiting and not self._back:
                if self._stopping and self._batches.aside == (0, 0):
                    return []
                # Who answers aside wakes nobody here: only the end waits for that.
                self._changed.wait(_ENDING if self._stopping else None)
            return self._take()

    def _take(self) -> list[Waiting]:
        """What waits, up to a batch; the first in any case. Those that were aside come first."""
        batch: list[Waiting] = []
        rows = 0
        for queue in (self._back, self._waiting):
            while queue and (not batch or rows + queue[0].asked.rows <= BATCH_ROWS):
                batch.append(queue.popleft())
                rows += batch[-1].asked.rows
        self._rows -= rows
        return batch

    def _answer(self, batch: Sequence[Waiting]) -> list[tuple[Waiting, Outcome]]:
        try:
            return self._batches.answer(batch)
        except Exception:  # noqa: BLE001 - the thread must outlive what nobody foresaw
            _log.exception("%s: a batch failed", self._name)
            error = RequestError(500, "internal", "the request could not be answered")
            return [(waiting, Outcome(error=error)) for waiting in batch]

    def settle(self, outcomes: Sequence[tuple[Waiting, Outcome]]) -> None:
        """Wake those who wait, all of a batch at once."""
        for loop in {waiting.loop for waiting, _ in outcomes}:
            theirs = [(w.future, outcome) for w, outcome in outcomes if w.loop is loop]
            try:
                loop.call_soon_threadsafe(_wake, theirs)
            except RuntimeError:  # the loop has ended, and so has everybody who waited in it
                _log.warning("%s: %d answers came too late", self._name, len(theirs))


def _wake(outcomes: Sequence[tuple[asyncio.Future[Outcome], Outcome]]) -> None:
    for future, outcome in outcomes:
        if not future.done():  # its client went away
            future.set_result(outcome)
