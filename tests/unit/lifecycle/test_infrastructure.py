"""The clean process finds what a server would find, and a repeat reports the same numbers."""

import json
from pathlib import Path

import pytest
import yaml

from evergreen.declaration import Declaration
from evergreen.lifecycle import infrastructure_probe, infrastructure_process
from evergreen.lifecycle.contracts import FeatureSet, TrainedModel
from evergreen.lifecycle.infrastructure import check_infrastructure
from evergreen.lifecycle.training import train
from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in
from tests.feature_sets import AS_OF, example_rows, store_features

KINDS = {"binary": "binary_classification", "multiclass": "multiclass_classification"}


def _trained(
    folder: Path, task: str, estimator: str
) -> tuple[Declaration, Workspace, TrainedModel, FeatureSet]:
    workspace = workspace_in(folder)
    (folder / "model").mkdir(exist_ok=True)
    declaration = declare(
        folder / "model",
        task=KINDS.get(task, task),
        training={"estimator": estimator},
        evaluation={"primary": "r2" if task == "regression" else "log_loss"},
    )
    prepared = store_features(workspace, example_rows(task))
    trained = train(
        declaration,
        workspace,
        *prepared,
        prepared[0].snapshot,
        run_key="train/1",
        as_of=AS_OF,
        cause="manual",
        lineage={},
    )
    return declaration, workspace, trained, prepared[0]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean processes are fresh interpreters."""
    monkeypatch.delenv(infrastructure_process.ADDRESS)


@pytest.mark.parametrize(
    ("task", "estimator"),
    [
        ("binary", "sklearn.linear_model.LogisticRegression"),
        ("multiclass", "lightgbm.LGBMClassifier"),
        ("regression", "xgboost.XGBRegressor"),
    ],
)
def test_a_good_model_is_the_same_in_a_clean_process(
    task: str, estimator: str, tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_TRAINER", "1")
    found = check_infrastructure(*_trained(tmp_path, task, estimator))
    assert found.problem is None
    assert found.loads
    assert found.signature_matches
    assert found.same_predictions
    assert set(found.latency_ms) == {"p50_1_row", "p95_1_row", "p50_1000_rows", "p95_1000_rows"}
    assert all(0 < value < 10_000 for value in found.latency_ms.values())
    assert found.memory_mb is not None
    assert 50 < found.memory_mb < 2_000
    assert check_infrastructure(*_trained(tmp_path, task, estimator)) == found
    assert "signature matches: True" in "\n".join(found.describe())


def test_a_forked_process_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _trained(tmp_path, "binary", "sklearn.linear_model.LogisticRegression")
    forked = check_infrastructure(*made)
    for noted in (tmp_path / "store").glob("documents/infrastructure-of/*"):
        noted.unlink()
    monkeypatch.delenv(infrastructure_process.ADDRESS)
    fresh = check_infrastructure(*made)
    measured = {"latency_ms", "memory_mb", "load_seconds"}
    assert forked.same_predictions
    assert forked.model_dump(exclude=measured) == fresh.model_dump(exclude=measured)
    assert forked.memory_mb == pytest.approx(fresh.memory_mb, rel=0.15)


def test_other_predictions_are_noticed(tmp_path: Path) -> None:
    declaration, workspace, trained, features = _trained(
        tmp_path, "binary", "sklearn.linear_model.LogisticRegression"
    )
    changed = trained.model_copy(update={"predictions_digest": "0" * 64})
    found = check_infrastructure(declaration, workspace, changed, features)
    assert (found.loads, found.same_predictions) == (True, False)


def test_a_model_that_fails_is_a_report(tmp_path: Path) -> None:
    declaration, workspace, trained, features = _trained(
        tmp_path, "binary", "sklearn.linear_model.LogisticRegression"
    )
    hanging = check_infrastructure(declaration, workspace, trained, features, timeout=0.01)
    assert not hanging.loads
    assert hanging.problem is not None
    assert "no answer within 0.01 s" in hanging.problem
    gone = trained.model_copy(update={"model_uri": "models:/m-00000000000000000000000000000000"})
    assert "can't be read" in (
        check_infrastructure(declaration, workspace, gone, features).problem or ""
    )
    (asks,) = (tmp_path / "store" / "mlflow").rglob("MLmodel")
    content = yaml.safe_load(asks.read_text())
    content["flavors"]["sklearn"]["skops_trusted_types"] = ["os.system"]
    asks.write_text(yaml.safe_dump(content))
    found = check_infrastructure(declaration, workspace, trained, features)
    assert "os.system" in (found.problem or "")
    content["flavors"]["sklearn"]["skops_trusted_types"] = []
    asks.write_text(yaml.safe_dump(content))
    asks.with_name("model.skops").write_bytes(b"not a model")
    found = check_infrastructure(declaration, workspace, trained, features)
    assert not found.loads
    assert "Error" in (found.problem or "") or "BadZipFile" in (found.problem or "")


def test_the_probe_writes_down_what_went_wrong(tmp_path: Path) -> None:
    question, answer = tmp_path / "in.json", tmp_path / "out.json"
    question.write_text(
        json.dumps({"model": "x", "rows": str(tmp_path / "none"), "task": "regression"})
    )
    infrastructure_probe.main(question, answer)
    found = json.loads(answer.read_text())
    assert found["loads"] is False
    assert "FileNotFoundError" in found["problem"]
    assert found["memory_mb"] > 10
