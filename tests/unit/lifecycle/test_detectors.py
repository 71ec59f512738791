"""A detector finds where a stream changed, and goes on from its numbers as if it had never stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest

from evergreen.lifecycle.detectors import Watcher


def watcher(name: str) -> Watcher:
    return Watcher(name, deviation=0.4, typical=0.2)


def test_blocks_keep_the_place_of_a_change() -> None:
    """The means on both sides of a change, though thousands of rows share 64 sums."""
    for before, after in ((500, 300), (40_000, 3_000)):
        values = [0.2] * before + [0.6] * after
        seen = list(watcher("adwin").follow(values))
        place, low, high = seen[0]
        assert before <= place < before + 100
        assert low == pytest.approx(0.2, abs=0.02)
        assert high > low


@pytest.mark.parametrize("at", [1, 700, 2_100])
@pytest.mark.parametrize("name", ["adwin", "page_hinkley", "ddm"])
def test_one_that_goes_on_from_its_numbers_sees_what_the_first_would_have_seen(
    name: str, at: int
) -> None:
    rng = np.random.default_rng(5)
    values = (rng.random(4_000) < np.repeat([0.2, 0.6, 0.2], [2_000, 1_000, 1_000])).astype(float)
    whole, first, second = watcher(name), watcher(name), watcher(name)
    expected = list(whole.follow(values.tolist()))
    found = list(first.follow(values[:at].tolist()))
    second.restore(json.loads(json.dumps(first.state())))
    found += [(at + place, *means) for place, *means in second.follow(values[at:].tolist())]
    assert expected, "the stream changes"
    assert found == [tuple(each) for each in expected]
    assert second.state() == whole.state()
