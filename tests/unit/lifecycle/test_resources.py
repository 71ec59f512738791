"""What a stage used is what the kernel counted, and a price is of an hour of it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.lifecycle.resources import Meter, Usage


def test_seconds_pass_without_work_and_cpu_seconds_do_not() -> None:
    meter = Meter()
    time.sleep(0.2)
    used = meter.read()
    assert 0.2 <= used.seconds < 5
    assert used.cpu_seconds < 0.15


def test_work_of_threads_and_of_children_is_counted() -> None:
    meter = Meter()
    began = time.process_time()
    while time.process_time() < began + 0.2:
        sum(range(1000))
    own = meter.read()
    assert own.cpu_seconds >= 0.19
    work = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", work], check=True)
    assert meter.read().cpu_seconds >= own.cpu_seconds + 0.45


def test_the_peak_stays_when_memory_is_given_back() -> None:
    before = Meter().read().peak_mb
    held = bytearray(b"x" * (64 << 20))
    assert len(held) > 0
    del held
    assert Meter().read().peak_mb >= max(before, 64)


def test_a_childs_peak_is_told_by_itself() -> None:
    """Alone in a process: the kernel keeps one peak of all children that ever were."""
    code = """
import subprocess, sys
from evergreen.lifecycle.resources import Meter
child = lambda mb: subprocess.run([sys.executable, "-c", f"x = bytearray(b'x' * ({mb} << 20))"], check=True)
child(150)
meter = Meter()
print(meter.read().child_peak_mb)
child(30)
print(meter.read().child_peak_mb)
child(300)
print(meter.read().child_peak_mb)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, smaller, larger = map(float, done.stdout.split())
    assert (before, smaller) == (0.0, 0.0)
    assert 300 <= larger < 700


@given(st.floats(0, 1e6), st.floats(0, 1e4), st.floats(0, 1e6))
def test_cost_is_hours_times_price(seconds: float, price: float, billed: float) -> None:
    used = Usage(seconds, 0.0, 0.0, 0.0)
    assert used.cost(price) == pytest.approx(seconds * price / 3600)
    assert used.cost(price, billed=billed) == Usage(billed, 0.0, 0.0, 0.0).cost(price)
    assert used.cost(0.0) == 0.0


def test_the_line_names_what_is_known() -> None:
    assert Usage(1.0, 2.0, 300.0, 120.4).describe() == (
        "used: 1.0 s, CPU 2.0 s, peak memory 300 MB and a child's 120 MB"
    )
