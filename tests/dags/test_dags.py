"""The DAG files: what they yield for any number of models, and what parsing them costs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from evergreen.declaration import declared_models
from tests.scenarios.project import DAGS, Project

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk import DAG

pytestmark = pytest.mark.dags

REPOSITORY = DAGS.parent
FAMILIES = ("drill", "escalate", "ingest", "monitor", "retrain", "rollback", "score")
MODELS = [model.name for model in declared_models(REPOSITORY / "include" / "models")]
EVERY = [f"{model}.{family}" for model in MODELS for family in FAMILIES]
VENDORS = (
    "duckdb", "evidently", "feast", "great_expectations", "matplotlib", "mlflow", "numpy", "pandas",
    "pyarrow", "scipy", "skops", "sklearn",
)  # fmt: skip

RETRAIN = {
    ("arbitrate", "extract"), ("arbitrate", "train"), ("arbitrate", "gate"),
    ("arbitrate", "promote"), ("arbitrate", "conclude"),
    ("extract", "validate_data"), ("extract", "build_features"), ("extract", "promote"),
    ("validate_data", "build_features"), ("validate_data", "gate"),
    ("build_features", "train"), ("build_features", "evaluate"),
    ("build_features", "check_infrastructure"), ("build_features", "promote"),
    ("train", "evaluate"), ("train", "check_infrastructure"), ("train", "gate"),
    ("train", "promote"),
    ("evaluate", "gate"), ("evaluate", "promote"), ("check_infrastructure", "gate"),
    ("gate", "promote"), ("promote", "conclude"),
    ("arbitrate", "roll_back"), ("roll_back", "conclude"),
}  # fmt: skip
EDGES: dict[str, set[tuple[str, str]]] = {
    "drill": set(),
    "escalate": set(),
    "ingest": set(),
    "monitor": {
        ("join_labels", "detect_drift"), ("join_labels", "measure_performance"),
        ("join_labels", "raise_signals"), ("join_labels", "announce"),
        ("detect_drift", "raise_signals"), ("measure_performance", "raise_signals"),
        ("raise_signals", "bake"), ("bake", "announce"),
    },
    "retrain": RETRAIN,
    "rollback": set(),
    "score": {
        ("extract", "validate_data"), ("extract", "build_features"), ("extract", "score"),
        ("extract", "announce"), ("validate_data", "build_features"),
        ("build_features", "score"), ("score", "announce"),
    },
}  # fmt: skip


def parse(dags: Path) -> DagBag:
    """What Airflow finds in a DAGs folder."""
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(dags, bundle_path=dags, bundle_name="dags-folder")


@pytest.fixture(scope="module")
def bag() -> DagBag:
    """What Airflow finds in the repository."""
    return parse(DAGS)


def edges(dag: DAG) -> set[tuple[str, str]]:
    """Every task with each task right after it."""
    return {(task.task_id, after) for task in dag.tasks for after in task.downstream_task_ids}


def test_every_model_has_every_dag_and_no_file_fails(bag: DagBag) -> None:
    assert (bag.import_errors, sorted(bag.dags)) == ({}, sorted(EVERY))


@pytest.mark.parametrize("dag_id", EVERY)
def test_a_dag_says_whose_it_is_and_what_it_does(bag: DagBag, dag_id: str) -> None:
    dag = bag.dags[dag_id]
    model, family = dag_id.split(".")
    assert dag.owner not in {"", "airflow"}
    assert dag.tags == {"evergreen", model, family}
    assert dag.doc_md is not None
    assert dag.doc_md.startswith(f"`<model>.{family}`")
    assert dag.description
    assert (dag.catchup, dag.max_active_runs) == (False, 1)
    assert dag.dagrun_timeout is not None
    for name in dag.params:
        field = dag.params.get_param(name)
        assert field.description, name
        assert {"title", "section"} <= set(field.schema), name


@pytest.mark.parametrize("dag_id", EVERY)
def test_tasks_follow_each_other(bag: DagBag, dag_id: str) -> None:
    assert edges(bag.dags[dag_id]) == EDGES[dag_id.split(".")[1]]


@pytest.mark.parametrize("model", MODELS)
def test_a_retrain_is_concluded_whatever_happens(bag: DagBag, model: str) -> None:
    """And its conclusion, which succeeds, doesn't make a failed run green."""
    conclude = bag.dags[f"{model}.retrain"].get_task("conclude")
    assert conclude.is_teardown
    assert not conclude.on_failure_fail_dagrun


def test_replicas_bring_their_tasks_and_a_dag_of_their_own(tmp_path: Path) -> None:
    project = Project.create(tmp_path, serving={"replicas": ["http://127.0.0.1:8080"]})
    found = parse(project.folder / "dags")
    assert found.import_errors == {}
    assert edges(found.dags["example.bake"]) == {("bake", "roll_back")}
    assert edges(found.dags["example.monitor"]) - EDGES["monitor"] == {
        ("compact_log", "detect_skew"), ("compact_log", "announce"), ("detect_skew", "announce"),
    }  # fmt: skip
    assert edges(found.dags["example.score"]) - EDGES["score"] == {
        ("build_features", "materialize"), ("materialize", "announce"),
    }  # fmt: skip


def test_the_drill_is_off_by_declaration(tmp_path: Path) -> None:
    project = Project.create(tmp_path, rollback={"drill": None})
    assert "example.drill" not in parse(project.folder / "dags").dags


def test_an_approval_stands_between_gate_and_promotion(tmp_path: Path) -> None:
    project = Project.create(tmp_path, gate={"approval": "always"})
    found = edges(parse(project.folder / "dags").dags["example.retrain"])
    asked = {("arbitrate", "approve"), ("gate", "approve"), ("approve", "promote")}
    assert found - RETRAIN == asked


def test_a_stage_runs_where_it_is_declared_to(tmp_path: Path) -> None:
    project = Project.create(tmp_path, compute={"train": {"queue": "gpu", "pool": "big"}})
    dag = parse(project.folder / "dags").dags["example.retrain"]
    train, gate = dag.get_task("train"), dag.get_task("gate")
    assert (train.queue, train.pool) == ("gpu", "big")
    assert (gate.queue, gate.pool) == ("default", "default_pool")


def test_a_hundred_models(tmp_path: Path) -> None:
    for number in range(100):
        model(tmp_path, f"model_{number:03}")
    dags = Path(shutil.copytree(DAGS, tmp_path / "dags"))
    bag = parse(dags)
    assert (bag.import_errors, len(bag.dags)) == ({}, 100 * len(FAMILIES))


@pytest.mark.parametrize("count", [1, 100])
def test_parsing_imports_no_ml_library(tmp_path: Path, count: int) -> None:
    """In a process of its own: this one has imported them all."""
    for number in range(count):
        model(tmp_path, f"model_{number:03}")
    dags = shutil.copytree(DAGS, tmp_path / "dags")
    code = (
        "import importlib.util, pathlib, sys\n"
        "for file in sorted(pathlib.Path(sys.argv[1]).glob('*.py')):\n"
        "    spec = importlib.util.spec_from_file_location(file.stem, file)\n"
        "    spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        f"print(*[name for name in {VENDORS!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(dags)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_a_broken_model_is_an_import_error_and_the_others_stay(tmp_path: Path) -> None:
    """One file reports every broken model; the others' files only yield what can be used."""
    project = Project.create(tmp_path, "good")
    model(tmp_path, "typo", trainng={"estimator": "x"})
    model(tmp_path, "nonsense", data={"uri": "landing/all.parquet"})
    bag = parse(project.folder / "dags")
    assert sorted(bag.dags) == [f"good.{family}" for family in FAMILIES]
    assert list(bag.import_errors) == ["declarations.py"]
    said = bag.import_errors["declarations.py"]
    assert f"{project.models}/typo/model.yaml:" in said
    assert "trainng: is not a key here. Did you mean training?" in said
    assert f"{project.models}/nonsense/model.yaml:" in said
    assert "the uri holds {partition} exactly once" in said


def test_a_broken_models_own_task_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task is parsed for its own DAG only; there, leaving the model out would hide the reason."""
    from airflow.sdk.definitions.context import _AIRFLOW_PARSING_CONTEXT_DAG_ID

    project = Project.create(tmp_path, "good")
    model(tmp_path, "typo", trainng={"estimator": "x"})
    monkeypatch.setenv(_AIRFLOW_PARSING_CONTEXT_DAG_ID, "typo.retrain")
    bag = parse(project.folder / "dags")
    assert bag.dags == {}
    assert "Did you mean training?" in bag.import_errors["retrain.py"]


def model(folder: Path, name: str, **sections: Any) -> None:
    """Declare one more model below ``folder``."""
    project = Project(folder, name)
    project.declare()
    file = project.models / name / "model.yaml"
    content = yaml.safe_load(file.read_text())
    for key, section in sections.items():
        content[key] = {**content.get(key, {}), **section}
    file.write_text(yaml.safe_dump(content))
