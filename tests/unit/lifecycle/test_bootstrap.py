"""The paired bootstrap says "better" rarely when nothing is better, and its interval covers."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.declaration import METRICS, Metric, Task
from evergreen.lifecycle.bootstrap import Difference, paired_difference
from evergreen.lifecycle.metrics import measure
from tests.printing import Figure

RUNS = 1000
ROWS = 500


def difference(
    name: str,
    labels: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    task: Task = Task.BINARY,
    seed: int = 1,
    resamples: int = 1000,
    clusters: np.ndarray | None = None,
) -> Difference:
    return paired_difference(
        METRICS[name],
        task,
        labels,
        ours,
        theirs,
        resamples=resamples,
        confidence=0.95,
        seed=seed,
        clusters=clusters,
    )


def noisy(rng: np.random.Generator, chance: np.ndarray, scale: float) -> np.ndarray:
    logit = np.log(chance / (1 - chance)) + rng.normal(0, scale, len(chance))
    return 1 / (1 + np.exp(-logit))


def test_a_over_a_and_coverage(figure: Figure) -> None:
    """1,000 simulated gates on equally good models: at most 5 % false promotions, and the 95 %
    interval holds the true difference (0, by symmetry) in 93 to 97 % of them."""
    rng = np.random.default_rng(7)
    promoted = covered = 0
    for run in range(RUNS):
        chance = rng.beta(2, 5, ROWS)
        labels = rng.binomial(1, chance)
        found = difference(
            "log_loss", labels, noisy(rng, chance, 0.4), noisy(rng, chance, 0.4), seed=run
        )
        promoted += found.low > 0
        covered += found.low <= 0 <= found.high
    figure(f"A/A: {promoted / RUNS:.1%} promoted, {covered / RUNS:.1%} covered")
    assert promoted / RUNS <= 0.05
    assert 0.93 <= covered / RUNS <= 0.97


def test_rows_that_err_together_need_clusters() -> None:
    """Days on which everything goes wrong: rows taken for independent promote far too often."""
    rng = np.random.default_rng(11)
    days = np.repeat(np.arange(30), 60)
    wrong = {"row": 0, "day": 0}
    for run in range(300):
        chance = np.clip(rng.beta(2, 5, len(days)), 0.05, 0.95)
        labels = rng.binomial(1, chance)
        shift = rng.normal(0, 0.6, 30)[days]
        ours = 1 / (1 + np.exp(-(np.log(chance / (1 - chance)) + shift)))
        theirs = 1 / (1 + np.exp(-(np.log(chance / (1 - chance)) + rng.normal(0, 0.6, 30)[days])))
        wrong["row"] += difference("log_loss", labels, ours, theirs, seed=run).low > 0
        wrong["day"] += (
            difference("log_loss", labels, ours, theirs, seed=run, clusters=days).low > 0
        )
    assert wrong["day"] / 300 <= 0.06
    assert wrong["row"] > 2 * wrong["day"]


def test_an_identical_twin_is_not_better() -> None:
    rng = np.random.default_rng(3)
    labels, chance = rng.integers(0, 2, ROWS), rng.uniform(0.05, 0.95, ROWS)
    for name in ("log_loss", "roc_auc", "brier_score", "accuracy", "f1_macro"):
        found = difference(name, labels, chance, chance.copy(), resamples=200)
        assert (found.estimate, found.low, found.high) == (0, 0, 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["log_loss", "roc_auc", "brier_score", "accuracy"]))
def test_changing_sides_changes_the_sign(seed: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, 60)]
    ours, theirs = rng.uniform(0.05, 0.95, 62), rng.uniform(0.05, 0.95, 62)
    one = difference(name, labels, ours, theirs, resamples=200)
    other = difference(name, labels, theirs, ours, resamples=200)
    assert one.estimate == pytest.approx(-other.estimate)
    assert one.low == pytest.approx(-other.high)
    assert one.low <= one.high


@pytest.mark.parametrize(
    ("name", "task"), [(m.name, t) for m in METRICS.values() for t in sorted(m.tasks)]
)
def test_every_metric_tells_the_better_from_the_worse(name: str, task: Task) -> None:
    rng = np.random.default_rng(5)
    if task is Task.REGRESSION:
        labels = rng.normal(0, 2, ROWS)
        good, bad = labels + rng.normal(0, 0.3, ROWS), labels + rng.normal(0, 2.0, ROWS)
    elif task is Task.BINARY:
        labels = rng.integers(0, 2, ROWS)
        good = np.clip(labels * 0.6 + 0.2 + rng.normal(0, 0.15, ROWS), 0.01, 0.99)
        bad = rng.uniform(0.3, 0.7, ROWS)
    else:
        labels = rng.integers(0, 3, ROWS)
        good, bad = (
            np.eye(3)[labels] * 2 + rng.uniform(0.2, 1.8, (ROWS, 3)),
            rng.uniform(0.2, 0.8, (ROWS, 3)),
        )
        good, bad = good / good.sum(axis=1, keepdims=True), bad / bad.sum(axis=1, keepdims=True)
    found = difference(name, labels, good, bad, task=task, resamples=200)
    assert found.low > 0
    assert found.low <= found.estimate <= found.high
    assert METRICS[name].improvement(
        measure(METRICS[name], task, labels, bad), measure(METRICS[name], task, labels, good)
    ) == pytest.approx(found.estimate)


def test_a_kpi_is_resampled_by_its_rows(tmp_path: Path) -> None:
    """The squared error by another name has the same interval, with clusters and without."""
    (tmp_path / "kpi.py").write_text(
        "def cost(labels, answers):\n    return (labels - answers) ** 2\n"
    )
    kpi = Metric("cost", frozenset(Task), False, "kpi:cost", tmp_path)
    rng = np.random.default_rng(4)
    labels, ours, theirs = rng.integers(0, 2, 300), rng.uniform(size=300), rng.uniform(size=300)
    for clusters in (None, np.arange(300) // 10):
        found = [
            paired_difference(
                metric,
                Task.BINARY,
                labels,
                ours,
                theirs,
                resamples=300,
                confidence=0.95,
                seed=1,
                clusters=clusters,
            )
            for metric in (METRICS["brier_score"], kpi)
        ]
        assert found[1].estimate == pytest.approx(found[0].estimate)
        assert (found[1].low, found[1].high) == pytest.approx((found[0].low, found[0].high))


def test_many_rows_cost_no_more_and_say_the_same() -> None:
    rng = np.random.default_rng(9)
    labels = rng.integers(0, 2, 60_000)
    ours, theirs = rng.uniform(0.2, 0.8, 60_000), rng.uniform(0.2, 0.8, 60_000)
    grouped = difference("log_loss", labels, ours, theirs)
    plain = difference("log_loss", labels, ours, theirs, clusters=np.arange(60_000), resamples=300)
    assert grouped.high - grouped.low == pytest.approx(plain.high - plain.low, rel=0.15)
