"""Training makes one run a key, however often it is killed, and the same model every time."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError, TrainingError
from evergreen.lifecycle import tracking
from evergreen.lifecycle.contracts import Feature, FeatureSet, Reference, TrainedModel
from evergreen.lifecycle.fitted import (
    METADATA,
    FittedModel,
    class_indices,
    class_values,
    digest_of_predictions,
    load_fitted,
)
from evergreen.lifecycle.packaging import environment_digest, examples, requirements
from evergreen.lifecycle.registry import logged_metadata, model_folder
from evergreen.lifecycle.sets import read_rows
from evergreen.lifecycle.training import refit, train
from evergreen.workspace import Workspace
from tests.builders import declare
from tests.feature_sets import AS_OF, DAYS, START, example_rows, store_features

TREES = "sklearn.ensemble.HistGradientBoostingClassifier"


def _declare(workspace: Workspace, task: str = "binary", **training: Any) -> Declaration:
    folder = workspace.home / "model"
    folder.mkdir(exist_ok=True)
    kinds = {"binary": "binary_classification", "multiclass": "multiclass_classification"}
    return declare(
        folder,
        task=kinds.get(task, task),
        training={"estimator": TREES, "parameters": {"max_iter": 5}, **training},
        evaluation={"primary": "root_mean_squared_error" if task == "regression" else "log_loss"},
    )


def _train(
    declaration: Declaration,
    workspace: Workspace,
    prepared: tuple[FeatureSet, Reference],
    key: str = "train/1",
    **options: Any,
) -> TrainedModel:
    return train(
        declaration,
        workspace,
        *prepared,
        prepared[0].snapshot,
        run_key=key,
        as_of=AS_OF,
        cause="drift",
        lineage={"git_commit": "abc", "dag_run": "r1"},
        **options,
    )


def _runs(workspace: Workspace, declaration: Declaration) -> list[Any]:
    experiment = tracking.experiment_id(workspace, declaration)
    return list(tracking.client(workspace).search_runs([experiment]))


def _logged(workspace: Workspace, declaration: Declaration) -> list[Any]:
    experiment = tracking.experiment_id(workspace, declaration)
    return list(tracking.client(workspace).search_logged_models([experiment]))


@pytest.mark.parametrize(
    ("task", "estimator", "classes"),
    [
        ("binary", TREES, ("0", "1")),
        ("binary", "xgboost.XGBClassifier", ("0", "1")),
        ("multiclass", "lightgbm.LGBMClassifier", ("early", "late", "on time")),
        ("multiclass", "xgboost.XGBClassifier", ("early", "late", "on time")),
        ("regression", "lightgbm.LGBMRegressor", ()),
        ("multiclass", "sklearn.linear_model.LogisticRegression", ("early", "late", "on time")),
    ],
)
def test_a_model_comes_back_as_it_was_fitted(
    task: str, estimator: str, classes: tuple[str, ...], workspace: Workspace
) -> None:
    prepared = store_features(workspace, example_rows(task))
    parameters = {"max_iter": 50} if "linear" in estimator else {"n_estimators": 5}
    parameters = {"max_iter": 5} if estimator == TREES else parameters
    declaration = _declare(workspace, task, estimator=estimator, parameters=parameters)
    trained = _train(declaration, workspace, prepared)
    assert trained.classes == classes
    loaded = load_fitted(workspace, declaration, trained.model_uri)
    assert (loaded.classes, loaded.features) == (classes, prepared[0].features)
    if classes and "xgboost" not in estimator:
        assert tuple(str(value) for value in loaded.estimator.classes_) == classes
    predictions = loaded.predict(read_rows(workspace.store, prepared[0], "holdout"))
    assert digest_of_predictions(predictions) == trained.predictions_digest
    again = _train(declaration, workspace, prepared, "train/2")
    assert again.predictions_digest == trained.predictions_digest
    assert again.mlflow_run != trained.mlflow_run


def test_a_repeat_gives_the_very_same_result(workspace: Workspace) -> None:
    declaration = _declare(workspace)
    prepared = store_features(workspace, example_rows())
    first = _train(declaration, workspace, prepared)
    assert _train(declaration, workspace, prepared) == first
    assert len(_runs(workspace, declaration)) == len(_logged(workspace, declaration)) == 1
    assert (first.training_rows, first.trained_through) == (480, prepared[0].training_end)
    tags = tracking.tags_of(workspace, first.mlflow_run)
    expected = {
        "cause": "drift",
        "model": "example",
        "run_key": "train/1",
        "data_digest": "s" * 64,
        "features_digest": prepared[1].digest,
        "git_commit": "abc",
        "dag_run": "r1",
        "code_digest": first.code_digest,
        "environment_digest": environment_digest(),
        "as_of": AS_OF.isoformat(),
        "refit": "false",
    }
    assert expected == {name: tags[f"evergreen.{name}"] for name in expected}


def test_a_logged_model_carries_rows_to_warm_a_server_up(workspace: Workspace) -> None:
    declaration = _declare(workspace)
    prepared = store_features(workspace, example_rows())
    found = []
    for key in ("train/1", "train/2"):
        trained = _train(declaration, workspace, prepared, key)
        with model_folder(workspace, trained.model_uri) as folder:
            found.append(logged_metadata(folder).metadata[METADATA]["examples"])
    assert found[0] == found[1]
    learned = read_rows(workspace.store, prepared[0], "training")
    chosen = learned.iloc[[0, 119, 239, 359, 479]]
    for example, (_, row) in zip(found[0], chosen.iterrows(), strict=True):
        assert set(example) == {feature.name for feature in prepared[0].features}
        for name, value in example.items():
            assert value == row[name] or (value is None and pd.isna(row[name]))
    assert json.loads(json.dumps(found[0], allow_nan=False)) == found[0]
    assert {type(example["gust"]) for example in found[0]} == {float, type(None)}


@given(st.integers(0, 30), st.randoms(use_true_random=False))
def test_examples_are_plain_few_and_of_the_rows(count: int, random: Any) -> None:
    numbers = [random.choice([1.5, -0.0, float("nan"), float("inf"), 3]) for _ in range(count)]
    words = [random.choice(["a", "", "ü", None]) for _ in range(count)]
    rows = pd.DataFrame({"number": numbers, "word": words, "other": 1})
    features = (Feature(name="word", type="string"), Feature(name="number", type="number"))
    found = examples(rows, features)
    assert len(found) == min(count, 5)
    assert json.loads(json.dumps(found, allow_nan=False)) == found == examples(rows, features)
    plain = [(w, n if np.isfinite(n) else None) for w, n in zip(words, numbers, strict=True)]
    assert all((example["word"], example["number"]) in plain for example in found)


def test_an_attempt_killed_before_its_result_goes_on(workspace: Workspace) -> None:
    declaration = _declare(workspace)
    prepared = store_features(workspace, example_rows())
    first = _train(declaration, workspace, prepared)
    client = tracking.client(workspace)
    client.delete_tag(first.mlflow_run, "evergreen.result")
    assert _train(declaration, workspace, prepared) == first
    client.delete_tag(first.mlflow_run, "evergreen.result")
    client.delete_logged_model(first.model_uri.removeprefix("models:/"))
    third = _train(declaration, workspace, prepared)
    assert third.model_uri != first.model_uri
    assert third.predictions_digest == first.predictions_digest
    assert len(_logged(workspace, declaration)) == 1


@pytest.mark.parametrize("moment", ["log_trial", "save_model", "set_result"])
def test_a_sigkilled_process_leaves_nothing_twice(moment: str, workspace: Workspace) -> None:
    """A real process ends by SIGKILL in the middle of a searched training; the next one goes on."""
    search = {"parameters": {"max_leaf_nodes": [4, 8], "learning_rate": [0.1, 0.3]}, "folds": 2}
    declaration = _declare(workspace, search=search)
    prepared = store_features(workspace, example_rows(per_day=60))
    root = Path(__file__).parents[3]
    script = root / "tests" / "killed_training.py"
    environment = {**os.environ, "PYTHONPATH": f"{root / 'plugins'}{os.pathsep}{root}"}
    done = subprocess.run(
        [
            sys.executable,
            script,
            moment,
            str(workspace.home),
            declaration.model_dump_json(),
            prepared[0].model_dump_json(),
            prepared[1].model_dump_json(),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    trained = _train(declaration, workspace, prepared)
    keys = [run.data.tags[tracking.RUN_KEY] for run in _runs(workspace, declaration)]
    assert len(keys) == len(set(keys)) == 5
    assert len(_logged(workspace, declaration)) == 1
    assert trained.tuned
    assert trained == _train(declaration, workspace, prepared)


def test_searched_parameters_are_reused_until_asked_again(workspace: Workspace) -> None:
    search = {"parameters": {"max_leaf_nodes": [4, 8]}, "candidates": 2, "folds": 2}
    declaration = _declare(workspace, search=search)
    prepared = store_features(workspace, example_rows(per_day=60))
    found = [
        _train(declaration, workspace, prepared, key, tune=tune)
        for key, tune in [("train/1", False), ("train/2", False), ("train/3", True)]
    ]
    assert len({str(trained.parameters) for trained in found}) == 1
    assert found[0].parameters["max_iter"] == 5
    children = [
        len(tracking.children(workspace, declaration, trained.mlflow_run)) for trained in found
    ]
    assert children == [2, 0, 2]


def test_a_refit_learns_from_the_holdout_too(workspace: Workspace) -> None:
    declaration = _declare(workspace)
    prepared = store_features(workspace, example_rows())
    trained = _train(declaration, workspace, prepared)
    shipped = refit(declaration, workspace, prepared[0], trained, run_key="train/1", as_of=AS_OF)
    assert shipped == refit(
        declaration, workspace, prepared[0], trained, run_key="train/1", as_of=AS_OF
    )
    assert (shipped.training_rows, shipped.refit) == (600, True)
    assert shipped.trained_through == START + pd.Timedelta(days=DAYS)
    assert shipped.predictions_digest != trained.predictions_digest
    assert sorted(m.name for m in _logged(workspace, declaration)) == ["model", "model-refit"]
    assert _train(declaration, workspace, prepared) == trained
    with pytest.raises(TrainingError, match="is of train/1, not of train/9"):
        refit(declaration, workspace, prepared[0], trained, run_key="train/9", as_of=AS_OF)


def test_one_class_is_named(workspace: Workspace) -> None:
    prepared = store_features(workspace, example_rows().assign(label=1))
    with pytest.raises(TrainingError, match="of one class, 1;"):
        _train(_declare(workspace), workspace, prepared)


def test_a_class_only_in_the_holdout_is_named() -> None:
    with pytest.raises(TrainingError, match="class divert"):
        class_indices(pd.Series(["late", "divert"]), ["early", "late"])


def test_labels_with_gaps_keep_their_classes() -> None:
    labels = pd.Series([1.0, 0.0, None, 1.0]).dropna()
    assert class_values(labels) == [0, 1]
    assert class_indices(labels, ["0", "1"]).tolist() == [1, 0, 1]
    assert class_values(pd.Series([True, False])) == [False, True]
    with pytest.raises(TrainingError, match="several types"):
        class_values(pd.Series([1, "late"], dtype=object))


def test_permuted_labels_teach_nothing(workspace: Workspace) -> None:
    from sklearn.metrics import roc_auc_score

    rows = example_rows(per_day=400)
    rows["label"] = np.random.default_rng(1).permutation(rows["label"])
    prepared = store_features(workspace, rows)
    declaration = _declare(workspace)
    trained = _train(declaration, workspace, prepared)
    holdout = read_rows(workspace.store, prepared[0], "holdout")
    model = load_fitted(workspace, declaration, trained.model_uri)
    assert isinstance(model, FittedModel)
    assert roc_auc_score(holdout["label"], model.predict(holdout)) == pytest.approx(0.5, abs=0.1)


def test_an_untrusted_type_is_named_with_where_to_declare_it(workspace: Workspace) -> None:
    name = "sklearn.metrics._dist_metrics.ManhattanDistance64"
    neighbours = {
        "estimator": "sklearn.neighbors.KNeighborsClassifier",
        "parameters": {"metric": "manhattan", "algorithm": "ball_tree"},
    }
    declaration = _declare(workspace, **neighbours)
    prepared = store_features(workspace, example_rows())
    with pytest.raises(TrainingError, match=rf"{name}.*training\.trusted_types"):
        _train(declaration, workspace, prepared)
    assert _logged(workspace, declaration) == []
    trained = _train(_declare(workspace, **neighbours, trusted_types=[name]), workspace, prepared)
    with pytest.raises(TrainingError, match=r"training\.trusted_types"):
        load_fitted(workspace, declaration, trained.model_uri)


def test_a_class_of_the_models_folder_is_refused(workspace: Workspace) -> None:
    declaration = _declare(workspace, estimator="training:build", parameters={})
    (workspace.home / "model" / "training.py").write_text(
        "from sklearn.linear_model import LogisticRegression\n"
        "from sklearn.impute import SimpleImputer\n"
        "from sklearn.pipeline import make_pipeline\n"
        "from sklearn.compose import make_column_transformer\n"
        "class Own(LogisticRegression):\n    pass\n"
        "def build():\n"
        "    numbers = make_column_transformer((SimpleImputer(), ['wind', 'gust']))\n"
        "    return make_pipeline(numbers, Own())\n"
    )
    prepared = store_features(workspace, example_rows())
    with pytest.raises(TrainingError, match=r"the model holds Own, .*a server doesn't have"):
        _train(declaration, workspace, prepared)


def test_a_wrong_search_or_fit_is_said_by_name(workspace: Workspace) -> None:
    prepared = store_features(workspace, example_rows())
    with pytest.raises(DeclarationError, match="no parameter max_leafs"):
        _train(
            _declare(workspace, search={"parameters": {"max_leafs": [3, 4]}}), workspace, prepared
        )
    bad = _declare(workspace, parameters={"max_iter": -1})
    with pytest.raises(TrainingError, match="can't be fitted on 480 rows"):
        _train(bad, workspace, prepared, "train/2")


def test_requirements_are_exact(workspace: Workspace) -> None:
    import lightgbm
    import xgboost

    needed = requirements(xgboost.XGBClassifier())
    assert f"xgboost-cpu=={xgboost.__version__}" in needed
    assert f"lightgbm=={lightgbm.__version__}" in requirements(lightgbm.LGBMRegressor())
    assert all("==" in entry for entry in needed)


def test_the_digest_of_predictions_overlooks_the_order_of_a_sum() -> None:
    values = np.random.default_rng(0).random(1000)
    noise = values * (1 + np.finfo(float).eps)
    assert digest_of_predictions(values) == digest_of_predictions(noise)
    assert digest_of_predictions(values) != digest_of_predictions(values + 1e-4)
