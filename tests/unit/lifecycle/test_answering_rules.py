"""Rules about a live version's answers: what is bad is surely bad, and what proves nothing is no proof."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats  # noqa: F401 - the rules import it at first use, in a timed example otherwise
from hypothesis import given
from hypothesis import strategies as st

from evergreen.declaration import Task
from evergreen.lifecycle.answering_rules import (
    Watch,
    distribution_rule,
    errors_rule,
    latency_rule,
    smoke_rule,
    surely_above,
)
from evergreen.lifecycle.replicacounts import Counters
from evergreen.lifecycle.servers import Smoke
from tests.builders import declare

WATCH = Watch(errors=0.01, latency=0.1, distribution=0.25, requests=20, confidence=0.9975)


@given(st.integers(0, 300), st.integers(0, 300))
def test_more_failures_are_never_better(failed: int, more: int) -> None:
    one = Counters(answered=300.0 - failed / 2, failed=float(failed))
    two = Counters(answered=300.0 - failed / 2, failed=float(failed + more))
    for final in (False, True):
        before, after = (errors_rule(c, WATCH, final=final).passed for c in (one, two))
        assert before or not after


@given(st.integers(1, 400), st.integers(0, 400))
def test_what_is_sure_is_also_plain(total: int, failed: int) -> None:
    found = Counters(answered=float(total), failed=float(failed))
    sure, plain = (errors_rule(found, WATCH, final=final).passed for final in (False, True))
    assert sure or not plain


def test_one_failure_is_no_proof() -> None:
    """A chance of 1 % a request comes true once in 10 requests by accident."""
    assert not surely_above(1, 10, 0.01, 0.95)
    assert surely_above(3, 10, 0.01, 0.95)
    assert surely_above(2, 2, 0.01, 0.9975)
    assert not surely_above(0, 0, 0.01, 0.95)


def test_a_watch_shares_its_confidence_among_its_looks(tmp_path: Path) -> None:
    declared = declare(tmp_path, bake={"watch": "10m", "every": "30s", "latency_p95_ms": 5})
    assert Watch.of(declared).confidence == pytest.approx(1 - 0.05 / 20)
    assert Watch.of(declared).latency == 0.005


def test_latency_needs_requests() -> None:
    few = Counters(buckets={0.01: 1.0, 0.1: 1.0, math.inf: 19.0})
    assert latency_rule(few, WATCH, final=True).passed
    assert (
        "beyond the last bucket of 19 requests, 20 needed"
        in latency_rule(few, WATCH, final=True).observed
    )
    assert not latency_rule(few + few, WATCH, final=True).passed
    assert not latency_rule(few + few, WATCH, final=False).passed
    assert latency_rule(Counters(), WATCH, final=True).observed.startswith("nothing was timed")


def test_answers_that_moved_away_from_the_formers() -> None:
    rng = np.random.default_rng(0)
    old = rng.beta(2, 5, 2000)
    near, far = np.clip(old + rng.normal(0, 0.02, 2000), 0, 1), np.clip(old + 0.3, 0, 1)
    assert distribution_rule((near, old), None, WATCH).passed
    assert not distribution_rule((far, old), None, WATCH).passed
    assert not distribution_rule((far, old), (near, old), WATCH).passed
    assert distribution_rule((far, old), (far, old), WATCH).passed  # as it was when it was judged
    assert distribution_rule((far[:199], old[:199]), None, WATCH).passed
    several = np.column_stack([1 - old, old])
    assert not distribution_rule((np.column_stack([1 - far, far]), several), None, WATCH).passed
    constant = np.full(300, 0.5)
    assert distribution_rule((constant, constant), None, WATCH).passed


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"status": None, "problem": "can't be reached"}, "http://a can't be reached"),
        ({"status": 429, "problem": "answers 429: queue full"}, "http://a answers 429: queue full"),
        ({"version": "6", "answers": ([0.5, 0.5],)}, "http://a answers with version 6"),
    ],
)
def test_what_says_nothing_of_the_version(answer: dict[str, Any], told: str) -> None:
    found = Smoke(**{"address": "http://a", "status": 200, "version": "7", **answer})
    assert smoke_rule(found, Task.BINARY, "7", np.array([0.5])) == told


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"status": 400, "problem": "answers 400: no column x"}, "answers 400: no column x"),
        ({"status": 500, "problem": "answers 500: {}"}, "answers 500: {}"),
        ({"answers": ()}, "it answers in the shape (0,), (1,) is expected"),
        ({"answers": ([0.5, math.nan],)}, "it answers NaN or infinity"),
        ({"answers": ("a",)}, "it answers what are no numbers"),
        ({"answers": ([0.5, 0.5], [0.5, 0.5])}, "it answers in the shape (2,)"),
        ({"answers": ([0.49, 0.51],)}, "it answers otherwise than here, by up to 0.01"),
    ],
)
def test_what_speaks_against_it(answer: dict[str, Any], told: str) -> None:
    found = Smoke(**{"address": "http://a", "status": 200, "version": "7", **answer})
    rule = smoke_rule(found, Task.BINARY, "7", np.array([0.5]))
    assert not isinstance(rule, str)
    assert not rule.passed
    assert rule.observed.startswith(told)
