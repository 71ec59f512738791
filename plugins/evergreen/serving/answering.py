"""Requests that wait are answered together, by one thread a model: micro-batching.

What waits when the thread is free is one batch: nobody waits for company, and under load batches
grow by themselves. What is done with a batch says `evergreen.serving.batching`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from time import monotonic

from evergreen.serving.batching import BATCH_ROWS, Batches, Outcome
from evergreen.serving.payloads import Asked
from evergreen.serving.refusals import RequestError

_log = logging.getLogger(__name__)
#: Requests and rows that may wait; more are turned away.
WAITING_REQUESTS, WAITING_ROWS = 512, 20_000
#: Seconds after which a client is told that its answer takes too long.
PATIENCE = 30.0
#: Seconds at one batch after which a model is said to hang.
HANGING = 60.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    asked: Asked
    request_id: str
    future: asyncio.Future[Outcome]
    loop: asyncio.AbstractEventLoop


class Answerer:
    """Answers one model's requests.

    :param name: the model's.
    """

    def __init__(self, name: str, batches: Batches) -> None:
        self._name, self._batches = name, batches
        self._changed = Condition()
        self._waiting: deque[_Waiting] = deque()
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

    def start(self) -> None:
        """Begin to answer."""
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
        return not self._thread.is_alive()

    async def answer(self, asked: Asked, request_id: str) -> Outcome:
        """Wait for a request's turn, and what becomes of it.

        One that takes too long is charged to the version that is at work then, if one is.

        :raises RequestError: 429 when too many wait; 503 at the end.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(asked, request_id, loop.create_future(), loop)
        self._submit(waiting)
        try:
            async with asyncio.timeout(PATIENCE):
                return await waiting.future
        except TimeoutError:
            reason = f"no answer within {PATIENCE:g} s"
            error = RequestError(504, "too_slow", reason, retry_after=1)
            version, role = self._batches.at_work
            return Outcome(error=error, version=version, role=role)

    def _submit(self, waiting: _Waiting) -> None:
        with self._changed:
            if self._stopping:
                raise RequestError(503, "stopping", "this replica stops", retry_after=1)
            crowded = self._rows + waiting.asked.rows > WAITING_ROWS and self._waiting
            if crowded or len(self._waiting) >= WAITING_REQUESTS:
                reason = f"{len(self._waiting)} requests wait; ask again, more slowly"
                raise RequestError(429, "busy", reason, retry_after=1)
            self._waiting.append(waiting)
            self._rows += waiting.asked.rows
            self._changed.notify()

    def _run(self) -> None:
        """Answer batch after batch; shadows in between; until stopped and nothing waits."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: bool(self._waiting or self._batches.behind or self._stopping)
                )
                if not self._waiting and self._stopping:
                    return
                batch = self._take()
            self._since = monotonic()
            if batch:
                self._settle(list(zip(batch, self._answer(batch), strict=True)))
            else:
                self._answer_shadows()
            self._since = None

    def _take(self) -> list[_Waiting]:
        """What waits, up to a batch; the first in any case."""
        batch: list[_Waiting] = []
        rows = 0
        while self._waiting and (not batch or rows + self._waiting[0].asked.rows <= BATCH_ROWS):
            batch.append(self._waiting.popleft())
            rows += batch[-1].asked.rows
        self._rows -= rows
        return batch

    def _answer(self, batch: Sequence[_Waiting]) -> list[Outcome]:
        try:
            return self._batches.answer([(each.asked, each.request_id) for each in batch])
        except Exception:  # noqa: BLE001 - the thread must outlive what nobody foresaw
            _log.exception("%s: a batch failed", self._name)
            error = RequestError(500, "internal", "the request could not be answered")
            return [Outcome(error=error)] * len(batch)

    def _answer_shadows(self) -> None:
        try:
            self._batches.answer_shadows()
        except Exception:  # noqa: BLE001 - the thread must outlive what nobody foresaw
            _log.exception("%s: a batch in the shadow failed", self._name)

    def _settle(self, outcomes: Sequence[tuple[_Waiting, Outcome]]) -> None:
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
