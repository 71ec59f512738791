"""Estimates come close to what labels show later, under covariate shift; or there is none."""

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.declaration import METRICS, Declaration, Task
from evergreen.ledger import records
from evergreen.lifecycle import estimation
from evergreen.lifecycle.contracts import Evaluation, Interval, Origin
from evergreen.lifecycle.estimation import Estimate, Holdout, calibrated, calibrators, estimate
from evergreen.lifecycle.intervals import Resampling
from evergreen.lifecycle.metrics import measure, row_losses
from evergreen.store import Store
from tests.builders import declare
from tests.lifelike import Life
from tests.printing import Figure

HOW = Resampling(resamples=400, confidence=0.95, seed=3)
CLASSES = ["log_loss", "roc_auc", "accuracy", "balanced_accuracy", "f1_macro"]
BINARY = [*CLASSES, "brier_score", "average_precision"]
ERRORS = ["mean_absolute_error", "mean_squared_error", "root_mean_squared_error"]
LETTERS = ("a", "b", "c")


def of_task(folder: Path, task: Task, metrics: list[str], **evaluation: Any) -> Declaration:
    return declare(
        folder,
        task=str(task),
        evaluation={"primary": metrics[0], "metrics": metrics[1:], **evaluation},
    )


def holdout_of(labels: np.ndarray, answers: np.ndarray, classes: tuple[str, ...] = ()) -> Holdout:
    evaluation = Evaluation(
        model="example",
        mlflow_run="r",
        holdout_digest="d",
        holdout_rows=len(labels),
        champion_version=None,
        predictions="nowhere",
        classes=classes,
        metrics={"candidate": {}},
    )
    rows = pd.DataFrame({"partition": "p", "row_id": range(len(labels))})
    return Holdout(evaluation, labels, answers, answers[:1], rows)


def binary(rng: np.random.Generator, rows: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels and answers of a model that is too sure of itself; ``shift`` moves the inputs."""
    x = rng.normal(shift, 1.0, rows)
    return rng.binomial(1, 1 / (1 + np.exp(-x))), 1 / (1 + np.exp(-1.6 * x - 0.2))


def several(rng: np.random.Generator, rows: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    score = rng.normal([0.0, shift, -shift], 1, (rows, 3))
    chances = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
    labels = (rng.random(rows)[:, None] > chances.cumsum(axis=1)).sum(axis=1)
    sure = chances**1.4
    return np.minimum(labels, 2), sure / sure.sum(axis=1, keepdims=True)


def test_binary_under_covariate_shift(tmp_path: Path, figure: Figure) -> None:
    """Each metric's mean error over 20 worlds is far smaller than how much the metric moved."""
    declaration = of_task(tmp_path, Task.BINARY, BINARY)
    found: dict[str, list[tuple[float, float, float, bool]]] = {name: [] for name in BINARY}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        holdout = holdout_of(*binary(rng, 4000, 0.0), classes=("0", "1"))
        labels, answers = binary(rng, 4000, 1.2)
        estimated = estimate(
            declaration,
            Store(str(tmp_path)),
            holdout,
            pd.DataFrame(index=range(4000)),
            answers,
            HOW,
        )
        assert not estimated.missing
        for name, value in estimated.metrics.items():
            before = measure(METRICS[name], Task.BINARY, holdout.labels, holdout.answers)
            now = measure(METRICS[name], Task.BINARY, labels, answers)
            covers = value.low <= now <= value.high
            found[name].append(
                (abs(value.value - now), abs(before - now), value.value - now, covers)
            )
    for name, values in found.items():
        error, moved, bias, covers = np.mean(values, axis=0)
        figure(
            f"{name}: error {error:.4f} (bias {bias:+.4f}) where it moved by {moved:.4f}; "
            f"the realised value lies in {covers:.0%} of the intervals"
        )
        assert error < 0.02, name
        assert error < moved or moved < 0.03, name
        assert abs(bias) < 0.012, name


def test_several_classes(tmp_path: Path, figure: Figure) -> None:
    declaration = of_task(tmp_path, Task.MULTICLASS, CLASSES)
    rng = np.random.default_rng(1)
    holdout = holdout_of(*several(rng, 10_000, 0.0), classes=LETTERS)
    labels, answers = several(rng, 10_000, 0.8)
    rows = pd.DataFrame(index=range(10_000))
    begun = perf_counter()
    estimated = estimate(declaration, Store(str(tmp_path)), holdout, rows, answers, HOW)
    took = perf_counter() - begun
    assert set(estimated.metrics) == set(CLASSES)
    for name, value in estimated.metrics.items():
        now = measure(METRICS[name], Task.MULTICLASS, labels, answers)
        figure(f"{name}: estimated {value}, realised {now:.4f} ({took:.1f} s for all)")
        assert value.value == pytest.approx(now, abs=0.03)


def test_a_change_of_concept_is_not_seen(tmp_path: Path) -> None:
    """Labels turn round: the estimate can't know, and says what would hold without it."""
    declaration = of_task(tmp_path, Task.BINARY, ["log_loss"])
    rng = np.random.default_rng(4)
    holdout = holdout_of(*binary(rng, 4000, 0.0), classes=("0", "1"))
    labels, answers = binary(rng, 4000, 0.0)
    rows = pd.DataFrame(index=range(4000))
    value = estimate(declaration, Store(str(tmp_path)), holdout, rows, answers, HOW).metrics[
        "log_loss"
    ]
    assert measure(METRICS["log_loss"], Task.BINARY, 1 - labels, answers) > value.high + 0.3


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (np.tile([0, 1], 99), "the holdout has 198 rows, 200 are needed"),
        (np.zeros(400, dtype=int), "the holdout holds the class no only"),
    ],
)
def test_nothing_to_learn_from(tmp_path: Path, labels: np.ndarray, why: str) -> None:
    holdout = holdout_of(labels, np.linspace(0.1, 0.9, len(labels)), ("no", "yes"))
    declaration = of_task(tmp_path, Task.BINARY, ["log_loss"])
    rows = pd.DataFrame(index=range(50))
    found = estimate(declaration, Store(str(tmp_path)), holdout, rows, np.full(50, 0.3), HOW)
    assert found.metrics == {}
    assert why in found.missing[0]


def test_a_small_holdout_is_less_sure(tmp_path: Path) -> None:
    declaration = of_task(tmp_path, Task.BINARY, ["log_loss"])
    _, answers = binary(np.random.default_rng(1), 5000, 0.5)
    widths = []
    for size in (250, 16_000):
        holdout = holdout_of(*binary(np.random.default_rng(2), size, 0.0), classes=("0", "1"))
        rows = pd.DataFrame(index=range(5000))
        value = estimate(declaration, Store(str(tmp_path)), holdout, rows, answers, HOW)
        widths.append(value.metrics["log_loss"].high - value.metrics["log_loss"].low)
    assert widths[0] > 2 * widths[1]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([Task.BINARY, Task.MULTICLASS]))
def test_chances_are_chances(seed: int, task: Task) -> None:
    rng = np.random.default_rng(seed)
    make = binary if task is Task.BINARY else several
    labels, answers = make(rng, 300, 0.0)
    _, asked = make(rng, 200, 3.0)
    chances = calibrated(task, labels, answers, asked, calibrators(task, labels, answers))
    assert chances.shape == (200, 2 if task is Task.BINARY else 3)
    assert (chances >= 0).all()
    assert chances.sum(axis=1) == pytest.approx(1)
    if task is Task.BINARY:  # a surer answer is never less likely
        assert (np.diff(chances[np.argsort(asked), 1]) >= 0).all()


@pytest.mark.parametrize(
    ("rows", "bent", "follows"), [(250, False, False), (8000, True, True), (8000, False, False)]
)
def test_a_shape_is_followed_only_where_rows_show_it(rows: int, bent: bool, follows: bool) -> None:
    """Answers that are right up to 0.5 and the same for all above; and answers on a line."""
    rng = np.random.default_rng(2)
    chance = rng.uniform(0.02, 0.98, rows)
    labels = rng.binomial(1, np.where(chance > 0.5, 0.6, chance) if bent else chance)
    (by,) = calibrators(Task.BINARY, labels, chance)
    assert (by is estimation._isotonic) is follows


def test_a_kpi_is_expected_over_classes(tmp_path: Path) -> None:
    (tmp_path / "money.py").write_text(
        "def profit(labels, predictions):\n"
        "    acted = predictions >= 0.5\n"
        "    return acted * (labels * 10.0 - 4.0)\n"
    )
    kpi = {"name": "profit", "function": "money:profit", "greater_is_better": True}
    declaration = of_task(tmp_path, Task.BINARY, ["log_loss"], kpi=kpi)
    rng = np.random.default_rng(6)
    holdout = holdout_of(*binary(rng, 8000, 0.0), classes=("0", "1"))
    labels, answers = binary(rng, 8000, 0.7)
    rows = pd.DataFrame(index=range(8000))
    value = estimate(declaration, Store(str(tmp_path)), holdout, rows, answers, HOW).metrics[
        "profit"
    ]
    losses = row_losses(declaration.metric("profit"), Task.BINARY, labels, answers)
    assert losses is not None
    assert value.value == pytest.approx(losses.mean(), abs=0.25)
    assert value.low < losses.mean() < value.high


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> tuple[Life, Holdout]:
    """A real version of a regression whose noise depends on its inputs."""
    life = Life.begin(
        tmp_path_factory.mktemp("regression"),
        task="regression",
        evaluation={"primary": ERRORS[0], "metrics": [*ERRORS[1:], "r2"], "baseline": "mean"},
        training={
            "estimator": "sklearn.ensemble.HistGradientBoostingRegressor",
            "holdout": {"length": "2d", "min_rows": 50},
            "window": {"min_rows": 50},
        },
    )
    for day in (1, 2, 3, 4):
        rows = 1440
        times = pd.date_range(f"2013-01-0{day}", periods=rows, freq="1min", tz="UTC").as_unit("us")
        labels = noisy(np.random.default_rng(day), rows)[1]
        life.land(
            day,
            rows=rows,
            event_timestamp=times,
            late=labels,
            **noisy(np.random.default_rng(day), rows)[0],
        )
    assert life.retrain("run 1").promotes
    with life.workspace.ledger.read() as session:
        row = records.promotion_of_version(session, "example", "1")
        assert row is not None
        origin = Origin.model_validate(row.origin)
    return life, Holdout.load(life.declaration, life.workspace.store, origin)


def noisy(
    rng: np.random.Generator, rows: int, loud: float = 0.3
) -> tuple[dict[str, Any], np.ndarray]:
    """Columns, and labels with five times the noise where ``kind`` is b, of which ``loud`` are."""
    x, kind = rng.normal(size=rows), np.where(rng.random(rows) < loud, "b", "a")
    return {"x": x, "kind": kind}, 2 * x + rng.normal(0, np.where(kind == "b", 2.5, 0.5))


def test_errors_grow_where_rows_get_noisy(regression: tuple[Life, Holdout], figure: Figure) -> None:
    """Only the share of noisy rows changes: 30 % at promotion, 80 % now."""
    life, holdout = regression
    columns, labels = noisy(np.random.default_rng(50), 4000, loud=0.8)
    rows, answers = pd.DataFrame(columns), 2 * columns["x"]
    begun = perf_counter()
    found = estimate(life.declaration, life.workspace.store, holdout, rows, answers, HOW)
    took = perf_counter() - begun
    assert set(found.metrics) == set(ERRORS)
    assert any("r2" in why for why in found.missing)
    for name, value in found.metrics.items():
        before = holdout.shown(life.declaration)[name]
        now = measure(METRICS[name], Task.REGRESSION, labels, answers)
        said = f"realised {now:.4f}, before {before:.4f}, {took:.1f} s for all"
        figure(f"{name}: estimated {value}, {said}")
        assert abs(value.value - now) < 0.25 * abs(before - now)
        assert value.low < value.value < value.high


def test_a_kind_the_holdout_lacks_is_estimated_all_the_same(
    regression: tuple[Life, Holdout],
) -> None:
    life, holdout = regression
    columns, _ = noisy(np.random.default_rng(51), 500)
    rows = pd.DataFrame({**columns, "kind": None})
    found = estimate(life.declaration, life.workspace.store, holdout, rows, 2 * columns["x"], HOW)
    assert set(found.metrics) == set(ERRORS)


def test_the_holdout_is_what_the_evaluation_saw(regression: tuple[Life, Holdout]) -> None:
    life, holdout = regression
    shown = holdout.shown(life.declaration)
    for name in life.declaration.metrics:
        value = measure(METRICS[name], Task.REGRESSION, holdout.labels, holdout.answers)
        assert shown[name] == pytest.approx(value)
    features = holdout.features(life.workspace.store)
    assert len(features) == len(holdout.labels)
    assert np.corrcoef(features["x"], holdout.answers)[0, 1] > 0.95  # joined in the right order
    assert (holdout.naive_answers(7) == holdout.naive[0]).all()


def test_metrics_declared_later_are_measured_now(
    regression: tuple[Life, Holdout], tmp_path: Path
) -> None:
    _, holdout = regression
    older = holdout.evaluation.model_copy(
        update={"metrics": {"candidate": {"mean_absolute_error": 99.0}}}
    )
    old = Holdout(older, holdout.labels, holdout.answers, holdout.naive, holdout.rows)
    shown = old.shown(of_task(tmp_path, Task.REGRESSION, ["mean_absolute_error", "r2"]))
    assert shown["mean_absolute_error"] == 99.0
    assert shown["r2"] == pytest.approx(holdout.evaluation.metrics["candidate"]["r2"])


def test_it_is_repeatable_and_samples_what_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declaration = of_task(tmp_path, Task.BINARY, ["roc_auc"])
    rng = np.random.default_rng(8)
    holdout = holdout_of(*binary(rng, 3000, 0.0), classes=("0", "1"))
    _, answers = binary(rng, 6000, 0.4)
    rows = pd.DataFrame(index=range(6000))

    def once() -> Estimate:
        hours = np.repeat(np.arange(60), 100)
        return estimate(
            declaration, Store(str(tmp_path)), holdout, rows, answers, HOW, clusters=hours
        )

    whole = once()
    assert once() == whole
    monkeypatch.setattr(estimation, "ESTIMATED", 2000)
    monkeypatch.setattr(estimation, "LEARNED", 1500)
    part = once()
    assert part == once()
    assert width(part.metrics["roc_auc"]) > width(whole.metrics["roc_auc"])
    assert part.metrics["roc_auc"].value == pytest.approx(whole.metrics["roc_auc"].value, abs=0.03)


def width(found: Interval) -> float:
    return found.high - found.low
