"""AWS over HTTP: training and deploying on SageMaker, landing on S3, hints by key and by queue."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from evergreen.declaration import Declaration, read_declaration
from evergreen.errors import UnavailableError
from evergreen.ledger.tables import PromotionRow
from evergreen.lifecycle import connection, modules
from evergreen.lifecycle.contracts import Decision, TrainedModel
from evergreen.lifecycle.modules import git_commit
from evergreen.lifecycle.training import train
from evergreen.operators.training import training_operator
from evergreen.standalone import HOST, free_port
from evergreen.workspace import Workspace
from tests.feature_sets import AS_OF, example_rows, store_features
from tests.integration.played_sagemaker import played_sagemaker
from tests.integration.processes import Process, wait_until
from tests.integration.services import S3Service
from tests.scenarios.project import Project, month
from tests.scenarios.runs import run_dag

pytestmark = [pytest.mark.integration, pytest.mark.minutes(3)]

ROLE = "arn:aws:iam::123456789012:role/evergreen"
TRAIN = {
    "engine": "sagemaker", "instance": "ml.m5.xlarge", "image": "example.com/evergreen:1",
    "role": ROLE, "poke": "1s",
    "entrypoint": [sys.executable, "-m", "evergreen.cli", "train-job"],
}  # fmt: skip
DEPLOY = {
    "image": "example.com/evergreen:1", "role": ROLE, "instance": "ml.m5.large", "poke": "1s",
    "endpoint": "example", "package_group": "example-models",
}  # fmt: skip


@dataclass
class Cloud:
    """A project whose store is on S3, whose MLflow is a server, and a played SageMaker."""

    project: Project
    aws: S3Service
    player: Path

    @property
    def workspace(self) -> Workspace:
        return Workspace.from_environment()

    @property
    def declaration(self) -> Declaration:
        return read_declaration(self.project.models / self.project.name)

    def jobs(self, run_id: str | None = None) -> list[dict[str, Any]]:
        """The ordered jobs, oldest first; only a run's, if it is named."""
        sagemaker = self.aws.client("sagemaker")
        listed = sagemaker.list_training_jobs(MaxResults=100)["TrainingJobSummaries"]
        every = [
            sagemaker.describe_training_job(TrainingJobName=j["TrainingJobName"]) for j in listed
        ]
        found = [j for j in every if run_id is None or run_id in j["HyperParameters"]["lineage"]]
        return sorted(found, key=lambda job: job["CreationTime"])

    def runs(self, run_key: str) -> list[str]:
        """The MLflow runs of a key."""
        with connection.session(self.workspace) as mlflow:
            experiment = mlflow.get_experiment_by_name("evergreen/example")
            if experiment is None:
                return []
            found = mlflow.search_runs(
                [experiment.experiment_id], f"tags.`evergreen.run_key` = '{run_key}'"
            )
        return [run.info.run_id for run in found]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("aws")
    project = Project.create(
        folder / "project", compute={"train": TRAIN}, sagemaker=DEPLOY,
        data={"uri": "s3://landing/example/{partition}.parquet", "arrival": {"sensor": "s3", "poke": "1s"}},
    )  # fmt: skip
    patch = pytest.MonkeyPatch()
    with played_sagemaker(folder / "player", project.models) as aws:
        aws.create("evergreen")
        aws.create("landing")
        for name, value in aws.environment.items():
            patch.setenv(name, value)
        extra = {"endpoint_url": aws.endpoint, "region_name": aws.environment["AWS_DEFAULT_REGION"]}
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({
            "conn_type": "aws", "login": aws.keys["AWS_ACCESS_KEY_ID"],
            "password": aws.keys["AWS_SECRET_ACCESS_KEY"], "extra": extra,
        }))  # fmt: skip
        patch.setenv("EVERGREEN_HOME", str(project.home))
        patch.setenv("EVERGREEN_STORE_URI", "s3://evergreen/store")
        patch.setenv("MLFLOW_TRACKING_URI", f"http://{HOST}:{free_port()}")
        patch.setenv("NO_PROXY", HOST)
        _forget_file_systems()
        yield Cloud(project, aws, folder / "player")
    patch.undo()
    _forget_file_systems()


@pytest.fixture(scope="module")
def trainer(cloud: Cloud) -> Iterator[Cloud]:
    """The same, with the MLflow server at its address."""
    url = os.environ["MLFLOW_TRACKING_URI"]
    folder = cloud.player
    process = Process(
        "mlflow",
        [
            sys.executable, "-m", "mlflow", "server", "--host", HOST,
            "--port", url.rpartition(":")[2], "--workers", "1",
            "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination", str(folder / "artifacts"),
        ],
        environment={
            "PATH": os.environ["PATH"], "HOME": str(folder), "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        folder=folder,
        log=folder / "mlflow.log",
    )  # fmt: skip

    def answers() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200
        return False

    try:
        process.start()
        wait_until(answers, what=f"MLflow answers at {url}", timeout=180, of=[process])
        yield cloud
    finally:
        process.stop()


def _forget_file_systems() -> None:
    """s3fs keeps the endpoint it was first opened with."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


class Task:
    """The train task of one DAG run, as Airflow would call it, try after try."""

    def __init__(self, cloud: Cloud, run_id: str, seed: int = 0, **compute: Any) -> None:
        self.cloud = cloud
        self.run_id = f"example.retrain/{run_id}"
        workspace = cloud.workspace
        _, features = store_features(workspace, example_rows(seed=seed))
        decision = Decision(
            model="example", id=1, run_id=self.run_id, action="retrain", cause="manual",
            reasons=("asked",), as_of=AS_OF, sequence=1,
        ).save(workspace.store)  # fmt: skip
        self.decision, self.features = decision, features
        self.pushed: dict[str, Any] = {}
        self.context: Any = {
            "ti": SimpleNamespace(xcom_push=lambda key, value: self.pushed.update({key: value})),
            "dag": SimpleNamespace(dag_id="example.retrain"),
            "dag_run": SimpleNamespace(run_id=run_id, bundle_version=None),
        }
        self.changed = compute

    def operator(self) -> Any:
        """A try begins with a new operator."""
        declaration = self.cloud.declaration
        if self.changed:
            place = declaration.compute["train"].model_copy(update=self.changed)
            declaration = declaration.model_copy(update={"compute": {"train": place}})
            declaration._folder = self.cloud.declaration.folder
        return training_operator(declaration)(
            task_id="train", model=declaration, decision=self.decision.to_dict(),
            features=self.features.to_dict(),
        )  # fmt: skip

    def order(self) -> TaskDeferred:
        """The first half of a try: until the task gives its slot up."""
        with pytest.raises(TaskDeferred) as deferred:
            self.operator().execute(self.context)
        return deferred.value

    def finish(self, deferred: TaskDeferred) -> dict[str, Any]:
        """The second half: what the triggerer does, then the task again on another worker."""

        async def event() -> dict[str, Any]:
            async with asyncio.timeout(240):
                async for found in deferred.trigger.run():
                    return dict(found.payload)
            raise AssertionError("the trigger ended without an event")

        result: dict[str, Any] = getattr(self.operator(), deferred.method_name)(
            self.context, event=asyncio.run(event())
        )
        return result

    def run(self) -> dict[str, Any]:
        """A whole try."""
        return self.finish(self.order())


def test_a_job_trains_what_a_task_would(trainer: Cloud) -> None:
    task = Task(trainer, "same")
    reference = task.run()
    workspace, declaration = trainer.workspace, trainer.declaration
    trained = TrainedModel.load(workspace.store, reference)
    (job,) = trainer.jobs("same")
    assert job["TrainingJobStatus"] == "Completed"
    assert job["ResourceConfig"]["InstanceType"] == "ml.m5.xlarge"
    assert len(trainer.runs(task.run_id)) == 1
    feature_set, again = store_features(workspace, example_rows())
    assert again == task.features
    lineage = {
        "dag_id": "example.retrain",
        "dag_run": "same",
        "git_commit": git_commit(declaration),
    }
    local = train(
        declaration, workspace, feature_set, again, feature_set.snapshot, run_key="locally",
        as_of=AS_OF, cause="manual", lineage={k: v for k, v in lineage.items() if v},
    )  # fmt: skip
    own = {"mlflow_run", "model_uri"}
    assert trained.model_dump(exclude=own) == local.model_dump(exclude=own)
    assert train(
        declaration, workspace, feature_set, again, feature_set.snapshot, run_key=task.run_id,
        as_of=AS_OF, cause="manual", lineage={},
    ) == trained  # fmt: skip


def test_killed_anywhere_and_tried_again_there_is_one_job(
    trainer: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(trainer, "killed", seed=1)
    hold = trainer.player / "hold"
    hold.touch()
    task.order()  # killed once the job was ordered, before the trigger was written down
    again = task.order()  # the job runs still
    for event in (None, {}, {"status": "error", "message": "the triggerer was restarted"}):
        with pytest.raises(TaskDeferred):  # a lost or false event: it looks, and waits on
            task.operator().look_again(task.context, event=event)
    assert [job["TrainingJobStatus"] for job in trainer.jobs("killed")] == ["InProgress"]
    # Somebody commits something else in the checkout while the job trains.
    monkeypatch.setattr(modules, "git_commit", lambda declaration: "f" * 40)
    hold.unlink()
    reference = task.finish(again)
    assert task.operator().execute(task.context) == reference  # killed before it could say so
    name = trainer.jobs("killed")[0]["TrainingJobName"]
    assert task.operator().look_again(task.context, event={"job_name": name}) == reference
    assert len(trainer.jobs("killed")) == 1
    assert len(trainer.runs(task.run_id)) == 1


def test_a_broken_machine_is_followed_by_another_job(trainer: Cloud) -> None:
    task = Task(trainer, "broken", seed=3)
    (trainer.player / "break").write_text("the host was lost")
    with pytest.raises(UnavailableError, match="the host was lost"):
        task.run()
    reference = task.run()
    states = [job["TrainingJobStatus"] for job in trainer.jobs("broken")]
    assert states == ["Failed", "Completed"]
    assert len(trainer.runs(task.run_id)) == 1
    assert TrainedModel.load(trainer.workspace.store, reference).training_rows > 0


def test_a_refusal_is_not_tried_again(trainer: Cloud) -> None:
    workspace = trainer.workspace
    rows = example_rows().assign(label=1)
    task = Task(trainer, "refused")
    _, task.features = store_features(workspace, rows)
    with pytest.raises(AirflowFailException, match="all 480 training rows are of one class"):
        task.run()
    assert "one class" in task.pushed["refused"]
    with pytest.raises(AirflowFailException, match="one class"):
        task.operator().execute(task.context)  # a cleared task: the same job says the same
    assert len(trainer.jobs("refused")) == 1


def test_an_image_of_another_commit_is_refused_until_it_is_mended(trainer: Cloud) -> None:
    task = Task(trainer, "commit", seed=4)
    hold = trainer.player / "hold"
    hold.touch()
    deferred = task.order()
    extra = trainer.project.models / "example" / "other.py"
    extra.write_text("# not in the bundle when the job was ordered\n")
    hold.unlink()
    try:
        with pytest.raises(AirflowFailException, match="Build the image from the same commit"):
            extra_gone(task, deferred, extra)
    finally:
        extra.unlink(missing_ok=True)
    task.run()
    assert [j["TrainingJobStatus"] for j in trainer.jobs("commit")] == ["Failed", "Completed"]


def extra_gone(task: Task, deferred: TaskDeferred, extra: Path) -> None:
    """Finish a try whose bundle is as it was, though the image is not."""
    wait_until(
        lambda: task.cloud.jobs("commit")[0]["TrainingJobStatus"] != "InProgress",
        what="the job is over", timeout=60,
    )  # fmt: skip
    extra.unlink()
    task.finish(deferred)


def test_a_container_that_is_not_ours_is_said_so(trainer: Cloud) -> None:
    task = Task(trainer, "foreign", seed=5, entrypoint=("true",))
    with pytest.raises(AirflowFailException, match=r"holds no evergreen\.json"):
        task.run()
    assert [j["TrainingJobStatus"] for j in trainer.jobs("foreign")] == ["Completed"]


def test_no_credentials_are_in_what_sagemaker_is_told(trainer: Cloud) -> None:
    hold = trainer.player / "hold"
    hold.touch()
    Task(trainer, "told", seed=6).order()
    (trainer.player / "break").write_text("it need not run")
    hold.unlink()
    (job,) = trainer.jobs("told")
    assert job["HyperParameters"]["tracking"] == os.environ["MLFLOW_TRACKING_URI"]
    assert trainer.aws.keys["AWS_SECRET_ACCESS_KEY"] not in json.dumps(trainer.jobs(), default=str)
    wait_until(
        lambda: trainer.jobs("told")[0]["TrainingJobStatus"] == "Failed", what="the job is over",
        timeout=60,
    )  # fmt: skip


def promote(cloud: Cloud, version: str) -> None:
    """Write into the ledger that a version is live."""
    with cloud.workspace.ledger.write() as session:
        session.add(
            PromotionRow(
                model="example", position=int(version), run_id=f"example.retrain/p{version}",
                version=version, replaced=None, kind="promotion", reason="better", as_of=AS_OF,
                mlflow_run="r", model_uri="models:/m", snapshot_uri="s", snapshot_digest="s",
                trained_through=AS_OF, origin={},
            )
        )  # fmt: skip


def deploy(cloud: Cloud) -> dict[str, str]:
    """Run the deployment's DAG; its tasks' states."""
    folder = cloud.project.folder / "dags"
    run = run_dag(folder, "example.deploy_sagemaker", "scheduled", {}, cloud.project.home)
    return run.states


def test_a_live_version_is_registered_and_served_once(cloud: Cloud) -> None:
    sagemaker = cloud.aws.client("sagemaker")
    assert set(deploy(cloud).values()) == {"skipped"}  # nothing is live
    promote(cloud, "1")
    assert set(deploy(cloud).values()) == {"success"}
    first = sagemaker.describe_endpoint(EndpointName="example")
    assert (first["EndpointStatus"], first["EndpointConfigName"][-3:]) == ("InService", "-v1")
    assert set(deploy(cloud).values()) == {"success"}  # a doubled event, or the hourly look
    again = sagemaker.describe_endpoint(EndpointName="example")
    assert again["LastModifiedTime"] == first["LastModifiedTime"]
    promote(cloud, "2")
    assert set(deploy(cloud).values()) == {"success"}
    second = sagemaker.describe_endpoint(EndpointName="example")
    assert second["EndpointConfigName"] == f"{first['EndpointConfigName'][:-1]}2"
    packages = sagemaker.list_model_packages(ModelPackageGroupName="example-models")
    assert len(packages["ModelPackageSummaryList"]) == 2
    container = sagemaker.describe_model(ModelName=second["EndpointConfigName"])["PrimaryContainer"]
    assert container["Environment"]["EVERGREEN_SERVE_MODELS"] == "example"
    assert container["ModelDataUrl"] == "s3://evergreen/store/deployments/example/2/model.tar.gz"
    assert cloud.workspace.store.exists(container["ModelDataUrl"])


def test_an_endpoint_that_goes_back_uses_up_its_tries(cloud: Cloud) -> None:
    """SageMaker is in service again after an update that failed, on what it ran before."""
    rejected = cloud.player / "rejected"
    promote(cloud, "11")
    assert set(deploy(cloud).values()) == {"success"}
    promote(cloud, "12")
    rejected.touch()
    folder = cloud.project.folder / "dags"
    run = run_dag(folder, "example.deploy_sagemaker", "scheduled", {}, cloud.project.home)
    assert run.states["point_endpoint"] == "failed"
    assert len(rejected.read_text().splitlines()) == run.tries["point_endpoint"]
    assert "-v12 and runs example-" in run.logs["point_endpoint"]
    rejected.unlink()
    assert set(deploy(cloud).values()) == {"success"}
    found = cloud.aws.client("sagemaker").describe_endpoint(EndpointName="example")
    assert found["EndpointConfigName"].endswith("-v12")


def land(cloud: Cloud, key: str) -> None:
    """Put a partition into the landing bucket."""
    body = month(key, rows=100).to_parquet(index=False)
    cloud.aws.client().put_object(Bucket="landing", Key=f"example/{key}.parquet", Body=body)


class Lander(Thread):
    """Lands a partition once somebody has asked for it and it was not there."""

    def __init__(self, cloud: Cloud, key: str) -> None:
        super().__init__()
        self.cloud, self.key = cloud, key
        self.log = cloud.player / "log"
        self.before = len(self.log.read_text())

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *raised: object) -> None:
        self.join()

    def run(self) -> None:
        wait_until(
            lambda: f"{self.key}.parquet" in self.log.read_text()[self.before :],
            what=f"somebody asks for {self.key}", timeout=60,
        )  # fmt: skip
        land(self.cloud, self.key)


def ingest(cloud: Cloud) -> str:
    """Run the ingest DAG; its task's state."""
    folder = cloud.project.folder / "dags"
    return run_dag(folder, "example.ingest", "scheduled", {}, cloud.project.home).states["ingest"]


def test_partitions_land_on_s3_and_hints_are_only_hints(cloud: Cloud) -> None:
    from airflow.sdk.exceptions import AirflowSkipException

    from evergreen.sensors.arrival import AwaitPartitionSensor, expected

    declaration, workspace = cloud.declaration, cloud.workspace
    sensor = AwaitPartitionSensor(task_id="await_partition", model=declaration)
    with pytest.raises(AirflowSkipException):
        sensor.execute({})  # type: ignore[typeddict-item]  # it needs nothing of the context
    land(cloud, "2024-01")
    assert ingest(cloud) == "success"  # the sweep, without any hint
    assert expected(declaration, workspace) == ["s3://landing/example/2024-02.parquet"]
    with pytest.raises(TaskDeferred):
        sensor.execute({})  # type: ignore[typeddict-item]
    with Lander(cloud, "2024-02"):  # lands while the sensor waits, as Airflow runs its trigger
        folder = cloud.project.folder / "dags"
        run = run_dag(folder, "example.arrive", "scheduled", {}, cloud.project.home)
    assert run.states == {"await_partition": "success"}
    assert "2024-02.parquet" in run.logs["await_partition"]
    assert ingest(cloud) == "success"
    assert ingest(cloud) == "skipped"  # a doubled hint
    assert expected(declaration, workspace) == ["s3://landing/example/2024-03.parquet"]
    land(cloud, "2024-03")
    land(cloud, "2024-04")
    assert ingest(cloud) == "success"  # one hint for two, or none at all
    assert expected(declaration, workspace) == ["s3://landing/example/2024-05.parquet"]


def test_a_message_in_the_queue_is_an_event(cloud: Cloud) -> None:
    from evergreen.sensors.arrival import queue_watcher

    sqs = cloud.aws.client("sqs")
    url = sqs.create_queue(QueueName="landed")["QueueUrl"]
    arrival = {"queue": url, "poke": "1s"}
    content = cloud.declaration.model_dump(mode="json")
    declaration = Declaration.model_validate(
        content | {"data": content["data"] | {"arrival": arrival}}
    )
    sqs.send_message(QueueUrl=url, MessageBody="whatever")
    watcher = queue_watcher(declaration)
    kind, given = watcher.trigger.serialize()  # type: ignore[union-attr]  # it is a trigger
    assert kind.endswith("SqsSensorTrigger")

    async def event() -> Any:
        from airflow.providers.amazon.aws.triggers.sqs import SqsSensorTrigger

        async with asyncio.timeout(60):
            async for found in SqsSensorTrigger(**given).run():
                return found.payload
        raise AssertionError("the trigger ended without an event")

    found = asyncio.run(event())
    assert found["message_batch"][0]["Body"] == "whatever"
    left = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"])
    assert left["Attributes"]["ApproximateNumberOfMessages"] == "0"
