"""A search scores by the declared primary metric, also by the model's own figure."""

from pathlib import Path

import pytest

from evergreen.errors import DeclarationError
from evergreen.lifecycle import tracking
from evergreen.lifecycle.fitted import targets
from evergreen.lifecycle.sets import read_rows
from evergreen.lifecycle.tuning import Lesson, best_parameters
from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in
from tests.feature_sets import AS_OF, FEATURES, example_rows, store_features

#: Learning slowly stays near 0.5: by this figure the slower candidate is the calmer one.
CALM = "def cost(labels, predictions):\n    return SIGN * abs(predictions - 0.5)\n"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return workspace_in(tmp_path_factory.mktemp("tuning"))


def _lesson(
    workspace: Workspace, folder: Path, *, greater: bool = False, kpi: bool = True
) -> Lesson:
    own = {"name": "boldness", "function": "kpi:cost", "greater_is_better": greater}
    declaration = declare(
        folder,
        training={
            "estimator": "sklearn.ensemble.HistGradientBoostingClassifier",
            "parameters": {"max_iter": 5},
            "search": {"parameters": {"learning_rate": [0.01, 0.5]}, "candidates": 2, "folds": 2},
        },
        evaluation={"primary": "boldness" if kpi else "log_loss", "kpi": own},
    )
    prepared, _ = store_features(workspace, example_rows(per_day=60))
    rows = read_rows(workspace.store, prepared, "training")
    known = targets(declaration.task, rows["label"], (0, 1))
    return Lesson(declaration, FEATURES, rows[[f.name for f in FEATURES]], known, (0, 1))


def _search(workspace: Workspace, lesson: Lesson, key: str) -> dict[str, float]:
    run = tracking.find_or_create_run(workspace, lesson.declaration, key, {})
    return best_parameters(workspace, lesson, run_id=run, run_key=key, as_of=AS_OF, tune=False)


@pytest.mark.parametrize(("greater", "best"), [(False, 0.01), (True, 0.5)])
def test_the_figure_that_is_declared_decides(
    greater: bool, best: float, workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "kpi.py").write_text(CALM.replace("SIGN", "1"))
    key = f"train/{greater}"
    lesson = _lesson(workspace, tmp_path, greater=greater)
    assert _search(workspace, lesson, key) == {"learning_rate": best}
    run = tracking.find_or_create_run(workspace, lesson.declaration, key, {})
    scores = [
        child.data.metrics["boldness"]
        for child in tracking.client(workspace).search_runs(
            [tracking.experiment_id(workspace, lesson.declaration)],
            f"tags.`mlflow.parentRunId` = '{run}'",
        )
    ]
    assert len(scores) == 2
    assert all(0 < score < 0.5 for score in scores)


def test_another_figure_is_another_question(workspace: Workspace, tmp_path: Path) -> None:
    """What was found by one metric doesn't answer for another."""
    (tmp_path / "kpi.py").write_text(CALM.replace("SIGN", "1"))
    assert _search(workspace, _lesson(workspace, tmp_path), "q/1") == {"learning_rate": 0.01}
    by_loss = _search(workspace, _lesson(workspace, tmp_path, kpi=False), "q/2")
    assert by_loss == {"learning_rate": 0.5}


def test_a_kpi_that_fails_ends_the_search_with_its_reason(
    workspace: Workspace, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    (tmp_path / "kpi.py").write_text(
        f"def cost(labels, predictions):\n    with open({str(calls)!r}, 'a') as file:\n"
        "        file.write('x')\n    return labels['rate']\n"
    )
    lesson = _lesson(workspace, tmp_path, greater=True)
    with pytest.raises(
        DeclarationError, match=r"kpi\.py: cost, the KPI boldness, raised IndexError"
    ):
        best_parameters(workspace, lesson, run_id="none", run_key="f", as_of=AS_OF, tune=True)
    assert calls.read_text() == "x"  # at the first candidate, not after all of them
