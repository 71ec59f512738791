"""A call that hangs costs its caller only so long, and few are left hanging."""

import threading
from time import perf_counter

import pytest

from evergreen.errors import UnavailableError
from evergreen.serving.patience import Beside


def test_a_call_returns_and_raises_as_it_would_here() -> None:
    beside = Beside("the thing")
    names = {beside.call(lambda: threading.current_thread().name, 5) for _ in range(3)}
    assert names == {"evergreen: the thing"}
    with pytest.raises(ZeroDivisionError):
        beside.call(lambda: 1 // 0, 5)
    assert beside.call(lambda: 7, 5) == 7
    beside.close()


def test_a_timeout_of_the_call_itself_is_not_ours() -> None:
    def slow() -> None:
        raise TimeoutError("the socket")

    beside = Beside("the thing")
    with pytest.raises(TimeoutError, match="the socket"):
        beside.call(slow, 5)
    beside.close()


def test_what_hangs_is_left_and_only_a_few_are() -> None:
    beside, ends, began = Beside("the thing", left_at_most=2), threading.Event(), perf_counter()
    for _ in range(2):
        with pytest.raises(UnavailableError, match=r"the thing doesn't answer within 0\.05 s"):
            beside.call(lambda: ends.wait(30), 0.05)
    with pytest.raises(UnavailableError, match="hasn't answered 2 earlier calls yet"):
        beside.call(lambda: 1, 5)
    assert perf_counter() - began < 5
    ends.set()
    for thread in [t for t in threading.enumerate() if t.name == "evergreen: the thing"]:
        thread.join(5)
        assert not thread.is_alive()
    assert beside.call(lambda: 2, 5) == 2
    beside.close()


def test_a_closed_one_ends_its_thread_and_starts_another() -> None:
    beside = Beside("the thing")
    thread = beside.call(threading.current_thread, 5)
    beside.close()
    thread.join(5)
    assert not thread.is_alive()
    assert beside.call(threading.current_thread, 5) is not thread
    beside.close()


def test_closing_lets_a_caller_go() -> None:
    beside, ends, raised = Beside("the thing"), threading.Event(), threading.Event()

    def call() -> None:
        with pytest.raises(UnavailableError, match="isn't waited for any more"):
            beside.call(lambda: ends.wait(30), 30)
        raised.set()

    caller = threading.Thread(target=call)
    caller.start()
    while beside._waiting is None:
        ends.wait(0.001)  # until it has called
    beside.close()
    assert raised.wait(5)
    ends.set()
    caller.join(5)
