"""What the test process at low priority is given has no clock in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.scheduling import FILES, LANES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("file", FILES)
def test_no_clock_in_it(file: str) -> None:
    text = (ROOT / file).read_text()
    clocks = re.findall(r"\b(?:perf_counter|monotonic|sleep|timeout|time\.time)\b", text)
    assert not clocks
    assert len(re.findall("@given", text)) == len(re.findall("deadline=None", text))


def test_lanes_hold_files() -> None:
    for of in LANES.values():
        assert all((ROOT / "tests" / prefix).exists() for prefix in of)
