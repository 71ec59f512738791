"""Where tasks run, and DAGs that only a declaration brings: executors, arrival, SageMaker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evergreen.declaration import DeclarationError
from evergreen.operators.base import StageOperator
from evergreen.operators.training import TrainModelOperator, training_operator
from evergreen.placing import check_executors, placed_models, runnable_models
from tests.dags.test_dags import edges, model, parse
from tests.scenarios.project import Project

if TYPE_CHECKING:
    from airflow.sdk import DAG

pytestmark = pytest.mark.dags

BATCH = "airflow.providers.amazon.aws.executors.batch.AwsBatchExecutor"
ECS = "airflow.providers.amazon.aws.executors.ecs.AwsEcsExecutor"
EKS = "airflow.providers.amazon.aws.executors.eks.AwsEksExecutor"
ROLE = "arn:aws:iam::123456789012:role/evergreen"
TRAIN = {"engine": "sagemaker", "instance": "ml.m5.xlarge", "image": "x:1", "role": ROLE}
DEPLOY = {"image": "x:1", "role": ROLE, "endpoint": "example", "instance": "ml.m5.large"}


@pytest.fixture
def executors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An Airflow with four executors; it reads their names once, so they are forgotten."""
    from airflow.executors import executor_loader as loader

    found = (
        loader._alias_to_executors_per_team, loader._module_to_executors_per_team,
        loader._classname_to_executors_per_team, loader._team_name_to_executors,
        loader._executor_names,
    )  # fmt: skip
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", f"LocalExecutor,batch:{BATCH},{ECS},eks:{EKS}")
    for names in found:
        names.clear()
    yield
    for names in found:
        names.clear()


def stages(dag: DAG) -> dict[str, StageOperator]:
    """The tasks that are stages, by task id."""
    return {task.task_id: task for task in dag.tasks if isinstance(task, StageOperator)}


@pytest.mark.usefixtures("executors")
def test_every_stage_runs_where_it_is_declared_to(tmp_path: Path) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    every = (
        "ingest", "arbitrate", "extract", "validate_data", "prepare", "train", "evaluate",
        "check_infrastructure", "gate", "promote", "score", "monitor", "escalate", "bake",
        "roll_back",
    )  # fmt: skip
    place = {"executor": "batch", "queue": "big", "pool": "models"}
    project = Project.create(
        tmp_path,
        compute={
            **dict.fromkeys(every, place), "gate": {"executor": ECS}, "train": {"executor": "eks"},
        },
    )  # fmt: skip
    elsewhere = {"gate": ECS, "train": "eks"}
    bag = parse(project.folder / "dags")
    assert bag.import_errors == {}
    seen = set()
    for dag in bag.dags.values():
        written = DagSerialization.from_dict(DagSerialization.to_dict(dag))
        for name, task in stages(dag).items():
            seen.add(task.stage)
            expected = ("batch", "big", "models")
            if task.stage in elsewhere:
                expected = (elsewhere[task.stage], "default", "default_pool")
            assert (task.executor, task.queue, task.pool) == expected, f"{dag.dag_id}.{name}"
            read = written.get_task(name)
            assert (read.executor, read.queue, read.pool) == expected, f"{dag.dag_id}.{name}"
    assert seen == set(every) - {"escalate"}  # a person's task, not a stage operator
    asked = bag.dags["example.escalate"].get_task("escalate")
    assert (asked.executor, asked.queue, asked.pool) == ("batch", "big", "models")


def test_an_unknown_executor_takes_only_its_own_model(tmp_path: Path) -> None:
    project = Project.create(tmp_path, "good")
    model(tmp_path, "lost", compute={"train": {"executor": "AwsBatchExecutor"}})
    assert [m.name for m in runnable_models(project.models)] == ["good"]
    with pytest.raises(DeclarationError, match=r"lost/model\.yaml: compute\.train\.executor") as e:
        list(placed_models(project.models))
    assert "found 'AwsBatchExecutor': [core] executor of this Airflow has" in str(e.value)
    with pytest.raises(DeclarationError, match="Declare one of these"):
        list(runnable_models(project.models, "lost.ingest"))
    check_executors(project.declaration)
    found = parse(project.folder / "dags")
    assert "good.ingest" in found.dags
    assert "ingest.py" not in found.import_errors


def test_an_executor_is_known_by_its_name_without_importing_it(tmp_path: Path) -> None:
    model(tmp_path, "example", compute={"train": {"executor": "batch"}})
    code = (
        "import sys, pathlib; from evergreen.placing import placed_models\n"
        "print(*[m.name for m in placed_models(pathlib.Path(sys.argv[1]))])\n"
        f"print({BATCH.rpartition('.')[0]!r} in sys.modules, 'boto3' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "include" / "models")],
        env=dict(environment(), AIRFLOW__CORE__EXECUTOR=f"LocalExecutor,batch:{BATCH}"),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["example", "False", "False"]


def environment() -> dict[str, str]:
    """This process's."""
    import os

    return dict(os.environ)


def test_aws_is_imported_only_where_it_is_declared(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    code = (
        "import importlib.util, pathlib, sys\n"
        "for file in sorted(pathlib.Path(sys.argv[1]).glob('*.py')):\n"
        "    spec = importlib.util.spec_from_file_location(file.stem, file)\n"
        "    spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "print(*[m for m in ('boto3', 'botocore', 'airflow.providers.amazon.aws') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(project.folder / "dags")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == []


def test_sagemaker_trains_where_it_is_declared(tmp_path: Path) -> None:
    from evergreen.operators.remote_training import TrainOnSageMakerOperator

    assert training_operator(Project.create(tmp_path / "a").declaration) is TrainModelOperator
    declared = Project.create(tmp_path / "b", compute={"train": {**TRAIN, "pool": "big"}})
    operator = training_operator(declared.declaration)
    assert operator is TrainOnSageMakerOperator
    task = operator(task_id="train", model=declared.declaration, decision={}, features={})
    assert task.pool == "big"


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (DEPLOY, {("plan", "create_model"), ("plan", "create_endpoint_config"),
                  ("create_model", "create_endpoint_config"), ("plan", "point_endpoint"),
                  ("create_endpoint_config", "point_endpoint")}),
        ({"image": "x:1", "role": ROLE, "package_group": "g"}, {("plan", "register")}),
    ],
)  # fmt: skip
def test_a_deployment_is_a_dag_of_its_own(
    tmp_path: Path, section: dict[str, Any], expected: set[tuple[str, str]]
) -> None:
    project = Project.create(tmp_path, sagemaker=section)
    bag = parse(project.folder / "dags")
    assert bag.import_errors == {}
    dag = bag.dags["example.deploy_sagemaker"]
    assert edges(dag) == expected
    assert dag.tags == {"evergreen", "example", "deploy_sagemaker"}
    assert dag.doc_md is not None
    assert dag.doc_md.startswith("`<model>.deploy_sagemaker`")


def test_a_hint_of_arrival_stands_beside_the_sweep(tmp_path: Path) -> None:
    uri = "s3://landing/{partition}.parquet"
    queue = "https://sqs.eu-central-1.amazonaws.com/123456789012/landed"
    keyed = Project.create(tmp_path / "a", data={"uri": uri, "arrival": {"sensor": "s3"}})
    bag = parse(keyed.folder / "dags")
    assert bag.import_errors == {}
    sensor = bag.dags["example.arrive"].get_task("await_partition")
    ingest = bag.dags["example.ingest"]
    assert [o.uri for o in sensor.outlets] == ["x-evergreen://example/arrivals"]
    assert [a.uri for a in ingest.timetable.asset_condition.objects] == [
        "x-evergreen://example/arrivals"
    ]
    assert ingest.timetable.timetable.expression == keyed.declaration.data.sweep
    watched = Project.create(tmp_path / "b", data={"uri": uri, "arrival": {"queue": queue}})
    bag = parse(watched.folder / "dags")
    assert bag.import_errors == {}
    assert "example.arrive" not in bag.dags
    (asset,) = bag.dags["example.ingest"].timetable.asset_condition.objects
    (watcher,) = asset.watchers
    assert watcher.trigger.sqs_queue == queue
