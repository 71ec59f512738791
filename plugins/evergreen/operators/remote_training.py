"""Train on SageMaker: order one job for a run, wait for it without a slot, take its result.

The job's name follows from the run, so a task that was killed anywhere finds the job it had
ordered. What SageMaker says of the job is the truth; the trigger's event only says when to look.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from evergreen.declaration.compute import SageMakerTraining
from evergreen.errors import (
    CorruptError,
    DeclarationError,
    TrainingError,
    UnavailableError,
    unavailable,
)
from evergreen.operators.training import TrainModelOperator, lineage_of

if TYPE_CHECKING:
    from airflow.providers.amazon.aws.hooks.sagemaker import SageMakerHook
    from airflow.sdk import Context

    from evergreen.lifecycle.contracts import Reference, TrainedModel
    from evergreen.lifecycle.remote_training import TrainingOrder
    from evergreen.workspace import Workspace

# A name is used up by a job that failed; a run that needs more has something to be looked at.
MOST_JOBS = 20
_OVER = frozenset({"Completed", "Failed", "Stopped"})
# What SageMaker answers to an order that no repetition makes right.
_WRONG = frozenset({"ValidationException", "AccessDeniedException", "AccessDenied"})
_TAKEN = frozenset({"ResourceInUse", "ResourceInUseException"})


class TrainOnSageMakerOperator(TrainModelOperator):
    """Fit the declared estimator in a job on SageMaker; one job, one MLflow run per DAG run.

    The container runs what `TrainModelOperator` runs (`evergreen.lifecycle.remote_training`), and
    the result is the same document. A job that has failed is followed by another when the task is
    tried again, unless the training itself refused.

    :param decision: the arbiter's decision. (templated)
    :param features: the feature set's reference. (templated)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        place = self.model.compute["train"]
        if not isinstance(place, SageMakerTraining):
            raise DeclarationError(f"{self.model.name}: compute.train.engine is not sagemaker")
        self.place = place
        self._watched: str | None = None
        self._billed = 0.0

    def run_stage(self, workspace: Workspace, context: Context) -> TrainedModel:
        from evergreen.lifecycle.contracts import Decision, Reference, TrainedModel
        from evergreen.lifecycle.remote_training import TrainingOrder

        decision = Decision.load(workspace.store, self.decision)
        order = TrainingOrder.write(
            self.model,
            workspace,
            decision=Reference.model_validate(self.decision),
            features=Reference.model_validate(self.features),
            lineage=lineage_of(self.model, context),
        )
        with _reached(self.place):
            reference = self._result(workspace, order, decision.run_id)
        return TrainedModel.load(workspace.store, reference)

    def billed_seconds(self) -> float | None:
        """What SageMaker charges for: of every job of this run that is over."""
        return self._billed or None

    def look_again(self, context: Context, event: Any = None) -> dict[str, Any] | None:
        """What Airflow calls when the trigger says that the job is over."""
        self._watched = (event or {}).get("job_name")
        return self.execute(context)

    def _result(self, workspace: Workspace, order: TrainingOrder, run_id: str) -> Reference:
        """The result of the run's job, which is ordered when there is none, and waited for.

        Never two at once: the next name is tried only when the job of the one before is over.

        :raises TaskDeferred: while it runs.
        :raises TrainingError: when the training itself refused.
        :raises DeclarationError: when SageMaker won't take the order.
        :raises UnavailableError: when the job broke, or every name is used up.
        """
        from airflow.providers.amazon.aws.hooks.sagemaker import SageMakerHook

        hook = SageMakerHook(  # type: ignore[no-untyped-call]  # the provider leaves it untyped
            aws_conn_id=self.place.connection, region_name=self.place.region
        )
        name, self._billed = "", 0.0
        for attempt in range(1, MOST_JOBS + 1):
            name = order.job_name(run_id, attempt)
            job = _described(hook, name) or self._ordered(hook, order, name)
            self.log.info("SageMaker job %s: %s", name, job["TrainingJobStatus"])
            if job["TrainingJobStatus"] not in _OVER:
                self._wait(name)
            self._billed += float(job.get("BillableTimeInSeconds") or 0.0)
            if found := self._reference(workspace, order, job):
                return found
        raise UnavailableError(
            f"{MOST_JOBS} jobs on SageMaker have ended without a result for {run_id}, the last is "
            f"{name}. Look there for the reason, then start another run."
        )

    def _wait(self, name: str) -> None:
        from airflow.providers.amazon.aws.triggers.sagemaker import SageMakerTrigger

        patience, every = self.place.patience, int(self.place.poke.total_seconds())
        self.defer(
            trigger=SageMakerTrigger(
                job_name=name,
                job_type="Training",
                waiter_delay=every,
                waiter_max_attempts=int(patience.total_seconds()) // every + 1,
                aws_conn_id=self.place.connection,
                region_name=self.place.region,
            ),
            method_name="look_again",
            timeout=patience,
        )

    def _reference(
        self, workspace: Workspace, order: TrainingOrder, job: dict[str, Any]
    ) -> Reference | None:
        """What a job that is over has left; None asks for another job.

        :raises AirflowFailException: when the job this task has waited for needs a person.
        """
        from evergreen.lifecycle.remote_training import REFUSED

        name, status = job["TrainingJobName"], job["TrainingJobStatus"]
        if not order.is_met_by(job["HyperParameters"]):
            self.log.warning("job %s was ordered with something else; ordering another", name)
            return None
        try:
            if status == "Completed":
                return _packed(workspace, job)
            why = str(job.get("FailureReason") or job.get("SecondaryStatus", status))
        except CorruptError as error:
            status, why = "Unusable", str(error)
        if REFUSED in why:
            raise TrainingError(f"SageMaker job {name}: {why.partition(REFUSED)[2]}")
        if name != self._watched:
            self.log.warning("job %s ended %s before: %s; ordering another", name, status, why)
            return None
        if status != "Failed" or "DeclarationError" in why:
            raise AirflowFailException(
                f"SageMaker job {name}: {status}: {why} Mend that, then clear this task: it orders "
                "another job."
            )
        raise UnavailableError(f"SageMaker job {name} failed: {why}. The task is tried again.")

    def _ordered(self, hook: SageMakerHook, order: TrainingOrder, name: str) -> dict[str, Any]:
        """Order the job; when another attempt of this task was as quick, its job is this one's."""
        from botocore.exceptions import ClientError

        try:
            hook.create_training_job(
                self._config(hook, order, name), wait_for_completion=False, print_log=False
            )
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in _WRONG:
                raise DeclarationError(
                    f"{self.model.name}: SageMaker doesn't take the order of {name}: {error}. "
                    "Correct compute.train, or what its role and the Connection "
                    f"{self.place.connection} may do."
                ) from error
            if code not in _TAKEN:
                raise
        self._watched = name
        found: dict[str, Any] = hook.describe_training_job(name)
        return found

    def _config(self, hook: SageMakerHook, order: TrainingOrder, name: str) -> dict[str, Any]:
        """What ``CreateTrainingJob`` takes."""
        place = self.place
        longest = int(place.longest.total_seconds())
        config: dict[str, Any] = {
            "TrainingJobName": name,
            "AlgorithmSpecification": {
                "TrainingImage": place.image,
                "TrainingInputMode": "File",
                "ContainerEntrypoint": [*place.entrypoint],
            },
            "RoleArn": hook.expand_role(place.role),
            "HyperParameters": order.hyperparameters(),
            "OutputDataConfig": {"S3OutputPath": f"{order.store}/sagemaker"},
            "ResourceConfig": {
                "InstanceType": place.instance,
                "InstanceCount": 1,
                "VolumeSizeInGB": place.volume_gb,
            },
            "StoppingCondition": {"MaxRuntimeInSeconds": longest},
            "Environment": dict(place.environment),
            "Tags": [{"Key": "evergreen:model", "Value": order.model}],
        }
        if place.spot:
            config["EnableManagedSpotTraining"] = True
            config["StoppingCondition"]["MaxWaitTimeInSeconds"] = 2 * longest
        if place.subnets:
            config["VpcConfig"] = {
                "Subnets": [*place.subnets],
                "SecurityGroupIds": [*place.security_groups],
            }
        return config


@contextmanager
def _reached(place: SageMakerTraining) -> Iterator[None]:
    """What AWS's clients raise is broken infrastructure, unless it was told apart before."""
    from botocore.exceptions import BotoCoreError, ClientError

    where = f"{place.connection or 'the environment'}, {place.region or 'its region'}"
    with unavailable("SageMaker", where, BotoCoreError, ClientError):
        yield


def _described(hook: SageMakerHook, name: str) -> dict[str, Any] | None:
    """SageMaker's description of a job, if it knows one of that name."""
    from botocore.exceptions import ClientError

    try:
        found: dict[str, Any] = hook.describe_training_job(name)
    except ClientError as error:
        said = error.response["Error"]
        # SageMaker has no code of its own for this; the second wording is moto's.
        unknown = ("Requested resource not found", "Could not find")
        if said["Code"] == "ValidationException" and said["Message"].startswith(unknown):
            return None
        raise
    return found


def _packed(workspace: Workspace, job: dict[str, Any]) -> Reference:
    """The reference that the job's container left in its model folder.

    :raises CorruptError: when it left none.
    """
    from evergreen.lifecycle.remote_training import LARGEST_ARCHIVE, read_result

    uri = job["ModelArtifacts"]["S3ModelArtifacts"]
    try:
        with workspace.store.reachable(), workspace.store.path(uri).open("rb") as stream:
            return read_result(stream.read(LARGEST_ARCHIVE))
    except FileNotFoundError as error:
        raise CorruptError(f"{uri} isn't there, though the job is completed.") from error
