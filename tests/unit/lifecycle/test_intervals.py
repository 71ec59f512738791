"""Intervals agree with scikit-learn and the gate's bootstrap, cover, and cost little."""

from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score

from evergreen.declaration import METRICS, Metric, Task
from evergreen.lifecycle.bootstrap import paired_difference
from evergreen.lifecycle.intervals import (
    Resampling,
    approximate,
    improvement,
    interval,
    mean_interval,
    widened,
)
from evergreen.lifecycle.metrics import measure
from tests.printing import Figure

EVERY = [(m.name, t) for m in METRICS.values() for t in sorted(m.tasks)]
HOW = Resampling(resamples=1000, confidence=0.95, seed=1)


def world(
    task: Task, rows: int, seed: int = 5, noise: float = 0.4
) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and answers that know something of them."""
    rng = np.random.default_rng(seed)
    if task is Task.REGRESSION:
        truth = rng.normal(0, 2, rows)
        return truth + rng.normal(0, noise, rows), truth
    if task is Task.BINARY:
        chance = rng.beta(2, 4, rows)
        return rng.binomial(1, chance), np.clip(chance + rng.normal(0, noise / 8, rows), 0.01, 0.99)
    chances = rng.dirichlet([1.0, 2.0, 1.5], rows)
    return (rng.random(rows)[:, None] > chances.cumsum(axis=1)).sum(axis=1), chances


@pytest.mark.parametrize(("name", "task"), EVERY)
def test_the_value_is_scikit_learns_and_lies_within(name: str, task: Task) -> None:
    labels, answers = world(task, 900)
    found = interval(METRICS[name], task, labels, answers, HOW)
    assert found is not None
    assert found.value == measure(METRICS[name], task, labels, answers)
    assert found.low < found.value < found.high
    assert approximate(METRICS[name], task, labels, answers) == pytest.approx(found.value, abs=2e-3)


@pytest.mark.parametrize(("name", "task"), EVERY)
def test_the_improvement_is_the_gates(name: str, task: Task) -> None:
    """Two ways to the same interval: sums here, a loop over resamples there."""
    labels, ours = world(task, 300)
    theirs = world(task, 300, seed=6)[1]
    found = improvement(METRICS[name], task, labels, ours, theirs, HOW)
    known = paired_difference(
        METRICS[name], task, labels, ours, theirs, resamples=500, confidence=0.95, seed=2
    )
    assert found is not None
    assert found.value == pytest.approx(known.estimate)
    reach = known.high - known.low
    assert found.low == pytest.approx(known.low, abs=0.12 * reach)
    assert found.high == pytest.approx(known.high, abs=0.12 * reach)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(EVERY))
def test_changing_sides_changes_the_sign(seed: int, of: tuple[str, Task]) -> None:
    name, task = of
    labels, ours = world(task, 80, seed)
    theirs = world(task, 80, seed + 1)[1]
    few = Resampling(resamples=200, confidence=0.9, seed=seed)
    one = improvement(METRICS[name], task, labels, ours, theirs, few)
    other = improvement(METRICS[name], task, labels, theirs, ours, few)
    twin = improvement(METRICS[name], task, labels, ours, ours.copy(), few)
    assert one is not None
    assert other is not None
    assert one.value == pytest.approx(-other.value)
    assert one.low == pytest.approx(-other.high)
    assert twin is not None
    assert (twin.value, twin.low, twin.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("log_loss", Task.BINARY),
        ("roc_auc", Task.BINARY),
        ("average_precision", Task.BINARY),
        ("f1_macro", Task.MULTICLASS),
        ("root_mean_squared_error", Task.REGRESSION),
        ("r2", Task.REGRESSION),
    ],
)
def test_coverage(name: str, task: Task, figure: Figure) -> None:
    """95 % intervals of 300 samples of 400 rows hold the value of a million rows."""
    truth = measure(METRICS[name], task, *world(task, 1_000_000, seed=1))
    runs, covered = 300, 0
    for run in range(runs):
        how = Resampling(resamples=400, confidence=0.95, seed=run)
        found = interval(METRICS[name], task, *world(task, 400, seed=1000 + run), how)
        assert found is not None
        covered += found.low <= truth <= found.high
    figure(f"{name}: {covered / runs:.1%} of 95 % intervals cover")
    assert 0.90 <= covered / runs <= 0.99


def test_rows_that_err_together_need_clusters() -> None:
    rng = np.random.default_rng(3)
    days = np.repeat(np.arange(40), 50)
    covered = {"row": 0, "day": 0, "mean": 0}
    for run in range(200):
        values = 1 + rng.normal(0, 0.5, 40)[days] + rng.normal(0, 1, len(days))
        how = Resampling(resamples=300, confidence=0.95, seed=run)
        mae, zero = METRICS["mean_absolute_error"], np.zeros(len(days))
        values = np.abs(values)
        truth = 1.2269  # E|1 + N(0, 1.25)| (a variance), by numerical integration
        for which, found in (
            ("row", interval(mae, Task.REGRESSION, values, zero, how)),
            ("day", interval(mae, Task.REGRESSION, values, zero, how, clusters=days)),
            ("mean", mean_interval(values, 0.95, days)),
        ):
            assert found is not None
            covered[which] += found.low <= truth <= found.high
    assert covered["day"] >= 180
    assert covered["mean"] >= 180
    assert covered["row"] <= 150


def test_the_normal_interval_is_the_bootstraps() -> None:
    labels, answers = world(Task.REGRESSION, 1500)
    drawn = interval(METRICS["mean_absolute_error"], Task.REGRESSION, labels, answers, HOW)
    normal = mean_interval(np.abs(labels - answers), 0.95)
    assert drawn is not None
    assert normal.value == pytest.approx(drawn.value)
    assert normal.high - normal.low == pytest.approx(drawn.high - drawn.low, rel=0.1)


def test_one_unit_says_nothing() -> None:
    found = mean_interval(np.ones(50), 0.95, np.zeros(50, dtype=int))
    assert (found.low, found.high) == (-np.inf, np.inf)


def test_weights_count_rows() -> None:
    """A row of weight 3 is that row three times; a chance of each class is an expectation."""
    for name, task in EVERY:
        labels, answers = world(task, 120)
        weights = np.random.default_rng(2).integers(1, 4, 120)
        again = np.repeat(np.arange(120), weights)
        found = interval(METRICS[name], task, labels, answers, HOW, weights=weights.astype(float))
        assert found is not None
        assert found.value == pytest.approx(
            measure(METRICS[name], task, labels[again], answers[again])
        )


def test_rows_that_do_not_define_a_metric() -> None:
    labels, answers = np.zeros(60, dtype=int), np.linspace(0.1, 0.9, 60)
    assert interval(METRICS["roc_auc"], Task.BINARY, labels, answers, HOW) is None
    assert improvement(METRICS["roc_auc"], Task.BINARY, labels, answers, answers, HOW) is None
    assert interval(METRICS["accuracy"], Task.BINARY, labels, answers, HOW) is not None


def test_a_further_error_widens() -> None:
    before = mean_interval(np.random.default_rng(1).normal(size=500), 0.95)
    same, wide = widened(before, 0.0, 0.95), widened(before, 0.3, 0.95)
    assert same.low == pytest.approx(before.low)
    assert wide.low < before.value - 1.96 * 0.3 < before.low
    assert wide.value == before.value


@pytest.mark.parametrize("name", ["roc_auc", "average_precision", "log_loss", "f1_macro"])
def test_half_a_million_rows(name: str) -> None:
    labels, answers = world(Task.BINARY, 500_000)
    begun = perf_counter()
    found = interval(METRICS[name], Task.BINARY, labels, answers, HOW)
    assert perf_counter() - begun < 20
    assert found is not None
    small = interval(METRICS[name], Task.BINARY, *world(Task.BINARY, 5_000), HOW)
    assert small is not None
    assert (found.high - found.low) * 10 == pytest.approx(small.high - small.low, rel=0.15)


def test_a_metric_nobody_knows_is_an_error() -> None:
    odd = Metric("odd", frozenset({Task.BINARY}), True)
    with pytest.raises(KeyError):
        interval(odd, Task.BINARY, *world(Task.BINARY, 50), HOW)


def test_values_against_scikit_learn_itself() -> None:
    labels, answers = world(Task.BINARY, 700)
    for name, function in (
        ("roc_auc", roc_auc_score),
        ("average_precision", average_precision_score),
    ):
        found = interval(METRICS[name], Task.BINARY, labels, answers, HOW)
        assert found is not None
        assert found.value == pytest.approx(function(labels, answers))
    truth, values = world(Task.REGRESSION, 700)
    found = interval(METRICS["r2"], Task.REGRESSION, truth, values, HOW)
    assert found is not None
    assert found.value == pytest.approx(r2_score(truth, values))
