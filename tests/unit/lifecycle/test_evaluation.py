"""Everyone answers the same rows; a champion that can't is a finding with a reason."""

import re
from typing import Any

import numpy as np
import pytest

from evergreen.declaration import Declaration, Task
from evergreen.lifecycle import tracking
from evergreen.lifecycle.contracts import FeatureSet, Reference, TrainedModel
from evergreen.lifecycle.evaluation import evaluate
from evergreen.lifecycle.metrics import calibration
from evergreen.lifecycle.training import train
from evergreen.workspace import Workspace
from tests.builders import declare
from tests.feature_sets import AS_OF, FEATURES, example_rows, store_features

Prepared = tuple[FeatureSet, Reference]


def _declare(workspace: Workspace, task: str, estimator: str, **parameters: Any) -> Declaration:
    folder = workspace.home / "model"
    folder.mkdir(exist_ok=True)
    kinds = {"binary": "binary_classification", "multiclass": "multiclass_classification"}
    metrics = ["mean_absolute_error", "r2"] if task == "regression" else ["roc_auc", "accuracy"]
    return declare(
        folder,
        task=kinds.get(task, task),
        training={"estimator": estimator, "parameters": parameters},
        evaluation={
            "primary": "root_mean_squared_error" if task == "regression" else "log_loss",
            "metrics": metrics,
            "slices": ["origin"],
        },
        gate={
            "fairness": [{"column": "carrier", "disparity_at_most": 0.5}]
            if task == "binary"
            else []
        },
    )


def _train(
    declaration: Declaration, workspace: Workspace, prepared: Prepared, key: str
) -> TrainedModel:
    return train(
        declaration,
        workspace,
        *prepared,
        prepared[0].snapshot,
        run_key=key,
        as_of=AS_OF,
        cause="manual",
        lineage={},
    )


@pytest.mark.parametrize(
    ("task", "estimator", "columns"),
    [
        (
            "binary",
            "sklearn.ensemble.HistGradientBoostingClassifier",
            ["candidate", "champion", "baseline"],
        ),
        ("multiclass", "lightgbm.LGBMClassifier", ["candidate_0", "champion_2", "baseline_1"]),
        ("regression", "xgboost.XGBRegressor", ["candidate", "champion", "baseline"]),
    ],
)
def test_all_answer_the_same_rows(
    task: str, estimator: str, columns: list[str], workspace: Workspace
) -> None:
    prepared = store_features(workspace, example_rows(task))
    declaration = _declare(workspace, task, estimator)
    candidate = _train(declaration, workspace, prepared, "train/2")
    weaker = {"max_iter": 1} if "Hist" in estimator else {"n_estimators": 1}
    champion = _train(
        _declare(workspace, task, estimator, **weaker), workspace, prepared, "train/1"
    )
    found, again = (
        evaluate(
            declaration,
            workspace,
            candidate,
            prepared[0],
            champion=("1", champion.model_uri),
            as_of=AS_OF,
        )
        for _ in range(2)
    )
    assert found == again
    assert found.champion_problem is None
    assert found.holdout_rows == 120
    primary, better = declaration.primary.name, declaration.primary.improvement
    values = {who: found.metrics[who][primary] for who in found.metrics}
    assert better(values["champion"], values["candidate"]) > 0
    assert better(values["baseline"], values["candidate"]) > 0
    table = workspace.store.get_table(found.predictions)
    assert {"partition", "row_id", "label", "origin", *columns} <= set(table.columns)
    assert ("carrier" in table.columns) == (task == "binary")
    assert len(table) == 120
    assert sum(part["rows"] for part in found.slices["origin"].values()) == 120
    assert {primary, f"champion.{primary}"} <= set(found.slices["origin"]["JFK"])
    assert max(found.importance, key=found.importance.__getitem__) == "wind"
    assert set(found.importance_change) == {feature.name for feature in FEATURES}
    client = tracking.client(workspace)
    logged = client.get_run(candidate.mlflow_run).data.metrics
    assert logged[f"champion.{primary}"] == pytest.approx(values["champion"])
    assert len(client.get_metric_history(candidate.mlflow_run, f"candidate.{primary}")) == 1
    names = {file.path for file in client.list_artifacts(candidate.mlflow_run, "evaluation")}
    assert {"evaluation/calibration.png", "evaluation/importance.png"} <= names
    assert any("holdout: 120 rows" in line for line in found.describe())


@pytest.fixture
def trained(workspace: Workspace) -> tuple[Declaration, Prepared, TrainedModel]:
    declaration = _declare(
        workspace, "binary", "sklearn.ensemble.HistGradientBoostingClassifier", max_iter=3
    )
    prepared = store_features(workspace, example_rows())
    return declaration, prepared, _train(declaration, workspace, prepared, "train/2")


def test_without_a_champion_there_is_nothing_to_compare(
    workspace: Workspace, trained: tuple[Declaration, Prepared, TrainedModel]
) -> None:
    declaration, prepared, candidate = trained
    found = evaluate(declaration, workspace, candidate, prepared[0], champion=None, as_of=AS_OF)
    assert (found.champion_version, found.champion_problem) == (None, None)
    assert set(found.metrics) == {"candidate", "baseline"}
    assert found.importance_change == {}


def test_a_champion_that_cannot_answer_is_a_finding(
    workspace: Workspace, trained: tuple[Declaration, Prepared, TrainedModel]
) -> None:
    declaration, prepared, candidate = trained
    rows = example_rows()
    three = store_features(workspace, example_rows("multiclass"))
    other = _declare(workspace, "multiclass", "lightgbm.LGBMClassifier", n_estimators=2)
    renamed = [f.model_copy(update={"name": "breeze"}) if f.name == "wind" else f for f in FEATURES]
    older = store_features(workspace, rows.rename(columns={"wind": "breeze"}), renamed)
    problems = {
        "models:/m-00000000000000000000000000000000": "can't be read from MLflow",
        _train(other, workspace, three, "train/3").model_uri: "it answers .* early, late, on time",
        _train(declaration, workspace, older, "train/4").model_uri: "it needs breeze",
    }
    for uri, problem in problems.items():
        found = evaluate(
            declaration, workspace, candidate, prepared[0], champion=("1", uri), as_of=AS_OF
        )
        assert found.champion_version == "1"
        assert "champion" not in found.metrics
        assert found.champion_problem is not None
        assert re.search(problem, found.champion_problem)


def test_calibration_is_the_mean_distance_by_bins() -> None:
    said = np.repeat([0.2, 0.8], 50)
    happened = np.concatenate([np.arange(50) < 10, np.arange(50) < 30]).astype(int)
    shuffled = np.random.default_rng(0).permutation(100)
    found = calibration(Task.BINARY, happened[shuffled], said[shuffled])
    assert found["mean_prediction"] == pytest.approx(0.5)
    assert found["mean_observed"] == pytest.approx(0.4)
    assert 0.1 <= found["expected_calibration_error"] < 0.25
    perfect = calibration(Task.REGRESSION, np.arange(20.0), np.arange(20.0))
    assert perfect["expected_calibration_error"] == perfect["mean_residual"] == 0.0


def test_a_tracked_kpi_is_measured_wherever_a_metric_is(workspace: Workspace) -> None:
    plain = _declare(
        workspace, "binary", "sklearn.ensemble.HistGradientBoostingClassifier", max_iter=3
    )
    (plain.folder / "kpi.py").write_text(
        "def cost(labels, answers):\n    return labels - answers\n"
    )
    kpi = {"name": "bias", "function": "kpi:cost", "greater_is_better": False}
    content = plain.model_dump(mode="json")
    declaration = declare(
        plain.folder, **content | {"evaluation": content["evaluation"] | {"kpi": kpi}}
    )
    prepared = store_features(workspace, example_rows())
    candidate = _train(declaration, workspace, prepared, "train/1")
    found = evaluate(declaration, workspace, candidate, prepared[0], champion=None, as_of=AS_OF)
    rows = workspace.store.get_table(found.predictions)
    bias = pytest.approx(float((rows["label"] - rows["candidate"]).mean()))
    assert (found.metrics["candidate"]["bias"], set(found.metrics["baseline"])) == (
        bias,
        {"log_loss", "roc_auc", "accuracy", "bias"},
    )
    assert "bias" in found.slices["origin"]["JFK"]
    logged = tracking.client(workspace).get_run(candidate.mlflow_run).data.metrics
    assert logged["candidate.bias"] == bias
