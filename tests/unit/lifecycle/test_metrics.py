"""One calling convention for scikit-learn's metrics and for a model's own figure."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.checking import check_model
from evergreen.declaration import METRICS, Declaration, Task
from evergreen.errors import DeclarationError
from evergreen.lifecycle.metrics import measure, measure_all, row_losses
from tests.builders import declare

COST = "def cost(labels, predictions):\n    return {}\n"
LATE = "labels * (1 - predictions) * 90 + (1 - labels) * predictions * 15"
LABELS, ANSWERS = np.array([0, 1, 1]), np.array([0.2, 0.5, 1.0])


def declared(folder: Path, code: str, *, task: str = "binary_classification") -> Declaration:
    """A model whose KPI is the primary metric."""
    (folder / "kpi.py").write_text(code)
    kpi = {"name": "delay_cost", "function": "kpi:cost", "greater_is_better": False}
    estimator = "LogisticRegression" if "class" in task else "LinearRegression"
    return declare(
        folder,
        task=task,
        evaluation={"primary": "delay_cost", "kpi": kpi},
        training={"estimator": f"sklearn.linear_model.{estimator}"},
    )


def test_a_kpi_is_the_mean_of_what_its_function_says_of_each_row(tmp_path: Path) -> None:
    declaration = declared(tmp_path, COST.format(LATE))
    own = row_losses(declaration.primary, declaration.task, LABELS, ANSWERS)
    assert own == pytest.approx([3, 45, 0])
    assert measure(declaration.primary, declaration.task, LABELS, ANSWERS) == pytest.approx(16)
    weights = np.array([0, 2, 0])
    weighed = measure(declaration.primary, declaration.task, LABELS, ANSWERS, weights)
    assert weighed == pytest.approx(45)
    assert measure_all(declaration, LABELS, ANSWERS) == {"delay_cost": pytest.approx(16)}
    check_model(declaration)


def test_labels_come_as_indices_and_answers_by_class(tmp_path: Path) -> None:
    code = COST.format("1 - predictions[range(len(labels)), labels]")
    declaration = declared(tmp_path, code, task="multiclass_classification")
    answers = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    labels = np.array([0.0, 2.0])  # as a table gives them
    assert measure(declaration.primary, declaration.task, labels, answers) == pytest.approx(0.25)


def test_what_a_kpi_does_to_its_arrays_changes_nothing_else(tmp_path: Path) -> None:
    code = "def cost(labels, predictions):\n    predictions[:] = 9\n    return predictions\n"
    declaration = declared(tmp_path, code, task="regression")
    labels, answers = np.array([1.0, 2.0]), np.array([1.0, 3.0])
    assert measure(declaration.primary, declaration.task, labels, answers) == 9
    assert answers.tolist() == [1.0, 3.0]


def test_changed_code_is_read_anew(tmp_path: Path) -> None:
    declaration = declared(tmp_path, COST.format("labels * 0 + 1"))
    assert measure(declaration.primary, declaration.task, LABELS, ANSWERS) == 1
    (tmp_path / "kpi.py").write_text(COST.format("labels * 0 + 2"))
    assert measure(declaration.primary, declaration.task, LABELS, ANSWERS) == 2


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def price(labels, predictions): ...\n", "cost is nothing.*has the functions price"),
        ("cost = 3\n", "cost is int 3.*has the functions none"),
        (
            "def cost(labels): return labels\n",
            "can't be called with .labels, predictions.: too many",
        ),
        ("raise OSError('no rates')\n", "can't be loaded: OSError: no rates"),
    ],
)
def test_check_names_a_function_that_cannot_be_a_kpi(code: str, words: str, tmp_path: Path) -> None:
    declaration = declared(tmp_path, code)
    for use in (check_model, lambda d: measure(d.primary, d.task, LABELS, ANSWERS)):
        with pytest.raises(DeclarationError, match=words) as problem:
            use(declaration)  # type: ignore[no-untyped-call]  # a check or a measurement
        assert str(tmp_path / "kpi.py") in str(problem.value)


def test_check_names_a_missing_module(tmp_path: Path) -> None:
    declaration = declared(tmp_path, "")
    (tmp_path / "kpi.py").rename(tmp_path / "cost.py")
    with pytest.raises(DeclarationError, match=r"kpi\.py: no such file.*the folder has cost\.py"):
        check_model(declaration)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("labels.mean()", r"returned float64 of shape \(\)"),
        ("labels[:2]", r"returned ndarray of shape \(2,\)"),
        ("labels[:, None]", r"returned ndarray of shape \(3, 1\)"),
        ("['dear'] * 3", "raised ValueError: could not convert"),
        ("None", r"returned NoneType of shape \(\)"),
        ("labels / 0.0", "returned nan for row 0 .label 0, prediction 0.2., and 3 such values"),
        ("{}['rate']", "raised KeyError: 'rate'"),
    ],
)
def test_a_kpi_that_gives_anything_else_is_refused_with_what_came(
    value: str, words: str, tmp_path: Path
) -> None:
    code = f"import numpy as np\nnp.seterr(all='ignore')\n{COST.replace('{}', value, 1)}"
    declaration = declared(tmp_path, code)
    with pytest.raises(DeclarationError, match=words) as problem, np.errstate(all="ignore"):
        measure_all(declaration, LABELS, ANSWERS)
    said = str(problem.value)
    assert f"{tmp_path / 'kpi.py'}: cost, the KPI delay_cost," in said
    assert "one finite number for each row, shape (3,)" in said


ROWWISE = ("log_loss", "accuracy", "brier_score", "mean_squared_error", "mean_absolute_error")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(n, t) for n in ROWWISE for t in Task]))
def test_a_mean_metric_is_the_mean_of_its_rows(seed: int, asked: tuple[str, Task]) -> None:
    """The law the bootstrap rests on, also with weights."""
    name, task = asked
    metric = METRICS[name]
    if task not in metric.tasks:
        return
    rng = np.random.default_rng(seed)
    labels: Any = rng.normal(size=30) if task is Task.REGRESSION else rng.integers(0, 3, 30)
    answers: Any = rng.normal(size=30)
    if task is Task.BINARY:
        labels, answers = labels % 2, rng.uniform(0.01, 0.99, 30)
    elif task is Task.MULTICLASS:
        answers = rng.dirichlet([1, 1, 1], 30)
    own = row_losses(metric, task, labels, answers)
    weights = rng.integers(0, 4, 30) + (np.arange(30) == 0)
    assert own is not None
    assert own.mean() == pytest.approx(measure(metric, task, labels, answers))
    weighed = measure(metric, task, labels, answers, weights)
    assert np.average(own, weights=weights) == pytest.approx(weighed)


def test_other_metrics_have_no_rows() -> None:
    assert row_losses(METRICS["roc_auc"], Task.BINARY, LABELS, ANSWERS) is None
