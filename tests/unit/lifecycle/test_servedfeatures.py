"""Served and recomputed values differ, or they don't: numbers by a tolerance, text exactly."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evergreen.lifecycle.servedfeatures import differing

NUMBERS = st.none() | st.floats() | st.floats(-10, 10) | st.sampled_from([0.0, -0.0, 1.0, 1e308])


def differ(kind: Any, pairs: list[tuple[Any, Any]], tolerance: float) -> tuple[list[bool], ...]:
    dtype = "float64" if kind == "number" else "object"
    served, offline = (pd.Series([p[side] for p in pairs], dtype=dtype) for side in (0, 1))
    return tuple(mask.tolist() for mask in differing(served, offline, kind, tolerance))


@pytest.mark.parametrize(
    ("a", "b", "differs", "one_sided"),
    [
        (None, None, False, False),
        (None, 0.0, True, True),
        (0.0, None, True, True),
        (1.0, 1.0 + 5e-7, False, False),
        (1.0, 1.0 + 5e-6, True, False),
        (0.0, -0.0, False, False),
        (float("inf"), float("inf"), False, False),
        (float("inf"), 1.0, True, False),
    ],
)
def test_two_numbers(a: float | None, b: float | None, differs: bool, one_sided: bool) -> None:
    assert differ("number", [(a, b)], 1e-6) == ([differs], [one_sided])


def test_text_where_a_number_belongs_differs_and_is_not_missing() -> None:
    served = pd.Series(["1.0", "gone", None], dtype="object")
    offline = pd.Series([1.0, 1.0, 1.0])
    differs, one_sided = differing(served, offline, "number", 0.0)
    assert (differs.tolist(), one_sided.tolist()) == ([False, True, True], [False, False, True])


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1), st.floats(0, 1))
def test_comparing_numbers_is_symmetric_and_lenient_by_tolerance(
    pairs: list[tuple[float | None, float | None]], tolerance: float
) -> None:
    found = differ("number", pairs, tolerance)
    assert found == differ("number", [(b, a) for a, b in pairs], tolerance)
    exact = differ("number", pairs, 0.0)
    assert all(strict or not lenient for strict, lenient in zip(exact[0], found[0], strict=True))
    assert 0.0 <= np.mean(found[0]) <= 1.0
    assert all(differs for differs, one in zip(*found, strict=True) if one), "missing differs"
    gone = [[v is None or np.isnan(v) for v in pair] for pair in pairs]
    equal = [all(g) or (not any(g) and p[0] == p[1]) for g, p in zip(gone, pairs, strict=True)]
    assert exact[0] == [not same for same in equal], "no tolerance is equality"


@given(st.lists(st.tuples(st.none() | st.text(), st.none() | st.text()), min_size=1))
def test_text_is_compared_exactly(pairs: list[tuple[str | None, str | None]]) -> None:
    found, one_sided = differ("string", pairs, 1.0)
    assert found == [a != b for a, b in pairs]
    assert one_sided == [(a is None) != (b is None) for a, b in pairs]


@given(st.floats(-1e6, 1e6), st.floats(1e-9, 0.5), st.floats(0, 2))
def test_the_tolerance_is_relative_to_the_larger_one(
    value: float, tolerance: float, part: float
) -> None:
    assume(abs(part - 1) > 1e-3)
    assume(abs(value) > 1e-6)
    other = value * (1 - part * tolerance)
    assert differ("number", [(value, other)], tolerance)[0] == [part > 1]
