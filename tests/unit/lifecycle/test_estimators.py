"""An estimator is what was declared, seeded, of the right kind; all else is said by name."""

from pathlib import Path
from typing import Any

import pytest

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError
from evergreen.lifecycle.estimators import build_estimator, libraries, wants_indices
from evergreen.lifecycle.fitted import input_frame
from tests.builders import declare
from tests.feature_sets import FEATURES, example_rows

SEED = 20130101


def _declare(
    folder: Path, estimator: str, task: str = "binary_classification", **training: Any
) -> Declaration:
    primary = "r2" if task == "regression" else "log_loss"
    return declare(
        folder,
        task=task,
        training={"estimator": estimator, **training},
        evaluation={"primary": primary},
    )


@pytest.mark.parametrize(
    ("estimator", "task", "encoder"),
    [
        (
            "sklearn.ensemble.HistGradientBoostingClassifier",
            "binary_classification",
            "OrdinalEncoder",
        ),
        ("lightgbm.LGBMClassifier", "multiclass_classification", "OrdinalEncoder"),
        ("xgboost.XGBRegressor", "regression", "OrdinalEncoder"),
        ("sklearn.linear_model.LogisticRegression", "binary_classification", "OneHotEncoder"),
        ("sklearn.linear_model.Ridge", "regression", "OneHotEncoder"),
    ],
)
def test_a_class_gets_the_preparation_it_needs(
    estimator: str, task: str, encoder: str, tmp_path: Path
) -> None:
    built = build_estimator(_declare(tmp_path, estimator, task), FEATURES)
    (_, encode, columns), *_ = built.named_steps["columns"].transformers
    assert (type(encode).__name__, columns) == (encoder, ["carrier"])
    assert built.named_steps["estimator"].random_state == SEED
    rows = example_rows({"regression": "regression"}.get(task, "binary"), per_day=20)
    frame = input_frame(rows, FEATURES)
    built.fit(frame, rows["label"])
    unseen = frame.head(3).assign(carrier=["ZZ", None, "AA"], gust=float("nan"))
    assert len(built.predict(unseen)) == 3


def test_a_function_of_the_folder_takes_the_parameters(tmp_path: Path) -> None:
    (tmp_path / "training.py").write_text(
        "from sklearn.ensemble import BaggingClassifier, HistGradientBoostingClassifier\n"
        "def build(*, depth=2, random_state=0):\n"
        "    trees = HistGradientBoostingClassifier(max_depth=depth)\n"
        "    return BaggingClassifier(trees, random_state=random_state)\n"
    )
    declaration = _declare(tmp_path, "training:build", parameters={"depth": 5})
    built = build_estimator(declaration, FEATURES)
    assert built.estimator.max_depth == 5
    assert (built.random_state, built.estimator.random_state) == (SEED, SEED)
    assert build_estimator(declaration, FEATURES, {"depth": 7}).estimator.max_depth == 7
    fixed = _declare(tmp_path, "training:build", parameters={"random_state": 3})
    assert build_estimator(fixed, FEATURES).random_state == 3


def test_libraries_and_index_labels_are_known(tmp_path: Path) -> None:
    boosted = build_estimator(_declare(tmp_path, "xgboost.XGBClassifier"), FEATURES)
    assert libraries(boosted) == ("sklearn", "xgboost")
    assert wants_indices(boosted)
    assert not wants_indices(
        build_estimator(_declare(tmp_path, "lightgbm.LGBMClassifier"), FEATURES)
    )


@pytest.mark.parametrize(
    ("estimator", "training", "message"),
    [
        ("sklearn.ensemble.NoSuchForest", {}, "no estimator class NoSuchForest"),
        ("no_such_package.Model", {}, "no_such_package"),
        ("training:build", {}, "no such file"),
        ("sklearn.linear_model.Ridge", {}, "Ridge; binary_classification needs .* classifier"),
        ("sklearn.svm.LinearSVC", {}, "LinearSVC; .* with predict_proba"),
        ("collections.OrderedDict", {}, "is of the package collections"),
        (
            "sklearn.linear_model.LogisticRegression",
            {"parameters": {"c": 1}},
            "no parameter c; .* C,",
        ),
        (
            "lightgbm.LGBMClassifier",
            {"parameters": {"learing_rate": 1}},
            "no parameter learing_rate",
        ),
        ("xgboost.XGBClassifier", {"parameters": {"learing_rate": 1}}, "no parameter learing_rate"),
    ],
)
def test_what_cannot_be_built_is_said_by_name(
    estimator: str, training: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DeclarationError, match=message):
        build_estimator(_declare(tmp_path, estimator, **training), FEATURES)


def test_a_function_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "training.py").write_text("def build():\n    raise RuntimeError('no')\n")
    with pytest.raises(DeclarationError, match=r"training:build fails .* RuntimeError: no"):
        build_estimator(_declare(tmp_path, "training:build"), FEATURES)
    with pytest.raises(DeclarationError, match="no function construct"):
        build_estimator(_declare(tmp_path, "training:construct"), FEATURES)
