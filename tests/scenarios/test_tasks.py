"""Other kinds of models from model.yaml alone: no feature module, the estimator by dotted path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.scenarios.project import Project, month

pytestmark = pytest.mark.dags

LABEL = {"column": "answer", "delay": "1d"}


def test_a_regression_with_lightgbm(tmp_path: Path) -> None:
    project = Project.create(
        tmp_path / "project", "prices", task="regression",
        data={"label": LABEL},
        training={"estimator": "lightgbm.LGBMRegressor", "parameters": {"n_estimators": 40}},
        evaluation={"primary": "mean_absolute_error", "metrics": ["r2"]},
        gate={"floors": {"r2": 0.5}},
    )  # fmt: skip

    def prices(key: str) -> pd.DataFrame:
        rows = month(key).drop(columns=["late", "label_timestamp"])
        return rows.assign(answer=10 * rows["signal"] + rows["turn"])

    project.ingest(m2024_01=prices("2024-01"))
    run = project.retrain()
    assert (run.state, project.last("outcome").outcome) == ("success", "promoted"), run.logs
    assert "better than naive (mean)" in run.logs["gate"]
    project.ingest(m2024_02=prices("2024-02"))
    assert (
        "scored 2024-02: 800 rows by version 1; mean_absolute_error"
        in project.score().logs["score"]
    )


def test_several_classes_and_a_category_nobody_has_seen(tmp_path: Path) -> None:
    """A category that the model never saw is answered for, and said."""
    project = Project.create(
        tmp_path / "project", "kinds", task="multiclass_classification",
        data={"label": LABEL},
        training={"estimator": "sklearn.ensemble.HistGradientBoostingClassifier",
                  "parameters": {"max_iter": 20}},
        evaluation={"primary": "log_loss", "metrics": ["accuracy"]},
    )  # fmt: skip

    def kinds(key: str) -> pd.DataFrame:
        rows = month(key).drop(columns=["late", "label_timestamp"])
        colours = np.array(["red", "green", "blue"])[rows["row"] % 3]
        answers = np.where(
            rows["signal"] > 0.5, "high", np.where(rows["signal"] < -0.5, "low", "mid")
        )
        return rows.assign(colour=colours, answer=answers)

    project.ingest(m2024_01=kinds("2024-01"))
    run = project.retrain()
    assert (run.state, project.last("outcome").outcome) == ("success", "promoted"), run.logs
    february = kinds("2024-02")
    february.loc[:4, "colour"] = "violet"
    project.ingest(m2024_02=february)
    log = project.score().logs["score"]
    assert "scored 2024-02: 800 rows by version 1; log_loss" in log
    assert "colour: 5 rows hold a category that version 1 never saw" in log
