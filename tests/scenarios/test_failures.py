"""What breaks: the code is wrong, or something can't be reached. Who retries, and who is told what."""

from __future__ import annotations

import json

import pytest

from evergreen.lifecycle import connection
from tests.scenarios.project import Project, month

pytestmark = pytest.mark.dags

BROKEN = {
    "no such module": ("sklearn.nowhere.Classifier", "", "No module named 'sklearn.nowhere'"),
    "no estimator": ("collections.OrderedDict", "", "is of the package collections"),
    "a function that makes none": (
        "training:build",
        "def build():\n    return {}\n",
        "makes a dict; binary_classification needs a scikit-learn classifier with predict_proba",
    ),
    "a file that doesn't load": (
        "training:build",
        "import nothing_of_that_name\n",
        "training.py: can't be loaded: ModuleNotFoundError",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_code_that_is_wrong_is_named_and_not_retried(project: Project, case: str) -> None:
    """A retry wouldn't mend it, and neither would another run: the signals count as answered."""
    estimator, code, reason = BROKEN[case]
    project.write("training.py", code)
    project.declare(training={"estimator": estimator, "holdout": {"length": "14d"}})
    project.ingest(m2024_02=month("2024-02"))
    run = project.retrain()
    assert (run.state, run.states["train"], run.tries["train"]) == ("failed", "failed", 1)
    assert reason in run.logs["train"]
    assert str(project.declaration.folder) in run.logs["train"]
    outcome = project.last("outcome")
    assert outcome.outcome == "refused"
    assert reason in outcome.detail
    assert project.champion() == "1"


def test_mlflow_is_away_for_a_while(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries, then a failed run that gives its signals back; the next one trains."""
    project.ingest(m2024_02=month("2024-02"))
    with monkeypatch.context() as away:
        server = {"conn_type": "http", "host": "http://127.0.0.1:9"}
        away.setenv("AIRFLOW_CONN_EVERGREEN_MLFLOW", json.dumps(server))
        away.setattr(connection, "PATIENCE", 0.1)
        run = project.retrain()
    assert (run.state, run.states["train"], run.tries["train"]) == ("failed", "failed", 6)
    assert "MLflow at http://127.0.0.1:9 can't be reached" in run.logs["train"]
    assert "outcome: failed" in run.logs["conclude"]
    outcome = project.last("outcome")
    assert (outcome.outcome, project.last("verdict")) == ("failed", None)
    assert project.open_causes() == ["new_data"]

    run = project.retrain()
    assert (run.state, project.last("outcome").outcome) == ("success", "promoted")
    assert (project.champion(), project.open_causes()) == ("2", [])
    assert project.last("promotion").position == 2


def test_a_connection_that_cannot_be_used_is_not_tried_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.ingest(m2024_02=month("2024-02"))
    nowhere = {"conn_type": "generic", "host": "mlflow"}
    with monkeypatch.context() as wrong:
        wrong.setenv("AIRFLOW_CONN_EVERGREEN_MLFLOW", json.dumps(nowhere))
        run = project.retrain()
    assert (run.state, run.states["arbitrate"], run.tries["arbitrate"]) == ("failed", "failed", 1)
    assert "host is 'mlflow'" in run.logs["arbitrate"]


def test_the_store_is_away(project: Project) -> None:
    """The decision stands in the ledger, but can't be carried out: its signals are open again."""
    project.ingest(m2024_02=month("2024-02"))
    store = project.home / "store"
    store.rename(store.with_name("elsewhere"))
    store.write_text("not a folder")
    run = project.retrain()
    assert (run.state, run.states["arbitrate"], run.tries["arbitrate"]) == ("failed", "failed", 6)
    assert f"the store at file://{store} can't be reached" in run.logs["arbitrate"]
    assert project.last("outcome").outcome == "failed"
    assert project.open_causes() == ["new_data"]
