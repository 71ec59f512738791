"""Calls to what may hang: made beside the caller, who waits only so long.

No library here can be told to give up in every case (a locked database, a disk that went away,
a server that accepts and says nothing), and Python can't end a thread. So a call that takes too
long is left to itself in its daemon thread, and only a few may be left like that at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

from evergreen.errors import UnavailableError

T = TypeVar("T")
_Call = tuple[Callable[[], Any], Future[Any]]
_Inbox = SimpleQueue[_Call | None]


class Beside:
    """One thread beside its owner's; another one when it hangs.

    :param what: what is called, for the errors: "MLflow", "the online store".
    :param left_at_most: hanging calls that may be left to themselves; with as many, further ones
        are refused at once.
    """

    def __init__(self, what: str, *, left_at_most: int = 3) -> None:
        self._what, self._left_at_most = what, left_at_most
        self._lock = Lock()
        self._inbox: _Inbox | None = None
        self._left: list[Future[Any]] = []
        self._waiting: Future[Any] | None = None

    def call(self, function: Callable[[], T], seconds: float) -> T:
        """What ``function`` returns or raises, when it does so within ``seconds``.

        :raises UnavailableError: when it doesn't, or when too many before it still hang.
        """
        future: Future[T] = Future()
        with self._lock:
            self._left = [call for call in self._left if not call.done()]
            if len(self._left) >= self._left_at_most:
                raise UnavailableError(
                    f"{self._what} hasn't answered {len(self._left)} earlier calls yet"
                )
            inbox = self._inbox = self._inbox or self._started()
            self._waiting = future
        inbox.put((function, future))
        try:
            return future.result(seconds)
        except TimeoutError:
            if future.done():  # its own, or it answered this very moment
                return future.result()
            self._leave(inbox, future)
        raise UnavailableError(f"{self._what} doesn't answer within {seconds:g} s")

    def close(self) -> None:
        """Let the thread end, and a caller that waits go on. A later call starts another."""
        with self._lock:
            inbox, self._inbox = self._inbox, None
            waiting, self._waiting = self._waiting, None
        if inbox is not None:
            inbox.put(None)
        if waiting is not None:
            with suppress(InvalidStateError):  # it has its answer
                waiting.set_exception(UnavailableError(f"{self._what} isn't waited for any more"))

    def _started(self) -> _Inbox:
        inbox: _Inbox = SimpleQueue()
        Thread(target=_serve, args=(inbox,), name=f"evergreen: {self._what}", daemon=True).start()
        return inbox

    def _leave(self, inbox: _Inbox, future: Future[Any]) -> None:
        """Leave a hanging call alone: its thread ends after it, the next call gets another."""
        with self._lock:
            self._left.append(future)
            if self._inbox is inbox:
                self._inbox = None
        inbox.put(None)


def _serve(inbox: _Inbox) -> None:
    """Make the calls of an inbox, one after the other, until it holds None."""
    while (call := inbox.get()) is not None:
        function, future = call
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:  # noqa: BLE001 - handed to the caller, whatever it is
            error = raised
        with suppress(InvalidStateError):  # its caller was let go by `close`
            future.set_result(result) if error is None else future.set_exception(error)
