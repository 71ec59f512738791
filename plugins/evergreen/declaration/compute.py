"""Where things run: a stage's task on Airflow's executors, training and a live version on SageMaker.

``engine`` says who does a stage's work. ``airflow``, the default, is the task itself; with
``sagemaker`` the task hands the work to a job there and waits without holding a slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from evergreen.declaration.types import Duration, Frozen

Instance = Annotated[str, Field(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9-]+$")]
#: An account's role, by its name or its ARN.
Role = Annotated[str, Field(pattern=r"^(arn:aws[a-z-]*:iam::\d{12}:role/)?[\w+=,.@/-]+$")]
Image = Annotated[str, Field(pattern=r"^\S+$", max_length=255)]
#: What SageMaker allows a name of ours to be, with room for a version or a digest behind it.
Label = Annotated[str, Field(pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,39}$")]
# SageMaker's own bound on a training job.
_LONGEST_JOB = timedelta(days=28)
# What must never be written down, by how such variables are called.
_SECRET = ("KEY", "PASSWORD", "SECRET", "TOKEN")


def _plain(environment: dict[str, str]) -> dict[str, str]:
    """Refuse names that look like secrets: a job's environment can be read by who may list jobs."""
    for name in environment:
        if any(word in name.upper() for word in _SECRET):
            raise ValueError(
                f"{name} looks like a secret, and what is declared here can be read in AWS; give "
                "the role access to it, or let the image fetch it"
            )
    return environment


class Placement(Frozen):
    """Where a stage's task runs: Airflow's own words, and what an hour of it costs.

    :ivar price: of one hour there, in whatever currency all prices are declared in.
    """

    engine: Literal["airflow"] = "airflow"
    executor: str | None = None
    queue: str | None = None
    pool: str | None = None
    price: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @property
    def arguments(self) -> dict[str, str]:
        """What Airflow's operators take, as far as it is declared."""
        return self.model_dump(include={"executor", "queue", "pool"}, exclude_none=True)


class Aws(Frozen):
    """How AWS is reached.

    :ivar connection: the Airflow Connection with its credentials; None for the environment's.
    :ivar region: the Connection's when left out.
    """

    connection: str | None = "aws_default"
    region: str | None = None


class SageMakerTraining(Placement, Aws):
    """Training as a job on SageMaker; the task only sees to it, and ``price`` is the job's.

    :ivar image: a container image with Evergreen, the model's folder and what it imports.
    :ivar role: which the job takes on: it must reach the store and MLflow.
    :ivar entrypoint: what the container starts; the default is Evergreen's command.
    :ivar volume_gb: disk of the instance, in GB.
    :ivar longest: after this long SageMaker stops the job.
    :ivar spot: take spare capacity, which SageMaker may take back; waits for it up to ``longest``.
    :ivar poke: how long between two looks at the job.
    :ivar environment: further variables of the container; no secrets.
    """

    engine: Literal["sagemaker"] = "sagemaker"  # type: ignore[assignment]  # each engine its own word
    instance: Instance
    image: Image
    role: Role
    entrypoint: tuple[str, ...] = Field(default=("evergreen", "train-job"), min_length=1)
    volume_gb: int = Field(default=30, ge=1, le=16_384)
    longest: Duration = Field(default="1d", validate_default=True)
    spot: bool = False
    poke: Duration = Field(default="30s", validate_default=True)
    environment: dict[str, str] = Field(default_factory=dict)
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()

    _environment = field_validator("environment")(_plain)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not timedelta(minutes=1) <= self.longest <= _LONGEST_JOB:
            raise ValueError("longest lies between 1m and 28d: SageMaker allows no other")
        if not timedelta(seconds=1) <= self.poke <= timedelta(hours=1):
            raise ValueError("poke lies between 1s and 1h")
        if bool(self.subnets) != bool(self.security_groups):
            raise ValueError("subnets and security_groups go together: a VPC needs both")
        return self

    @property
    def patience(self) -> timedelta:
        """How long a job may take from its order to its end, with an hour for what is around it."""
        return self.longest * (2 if self.spot else 1) + timedelta(hours=1)


class SageMakerDeployment(Aws):
    """What SageMaker is told of a version that went live: a model package, an endpoint, or both.

    :ivar image: a container image with Evergreen and the model's folder, which answers requests.
    :ivar role: which the endpoint takes on: it must reach the store and MLflow.
    :ivar endpoint: its name; made when missing, otherwise updated without a gap.
    :ivar package_group: of the registered model packages.
    :ivar approval: what a package is registered as.
    :ivar instance: of the endpoint.
    :ivar count: how many of them.
    :ivar environment: further variables of the container; no secrets.
    """

    image: Image
    role: Role
    endpoint: Label | None = None
    package_group: Label | None = None
    approval: Literal["Approved", "PendingManualApproval"] = "Approved"
    instance: Instance | None = None
    count: int = Field(default=1, ge=1, le=100)
    poke: Duration = Field(default="30s", validate_default=True)
    environment: dict[str, str] = Field(default_factory=dict)

    _environment = field_validator("environment")(_plain)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.endpoint is None and self.package_group is None:
            raise ValueError("name an endpoint, a package_group, or both")
        if (self.endpoint is None) != (self.instance is None):
            raise ValueError("an endpoint needs an instance (like ml.m5.large), and only it does")
        return self


def _engine(value: Any) -> str:
    """Which of the engines a declared placement means.

    The names below are bracketed as pydantic's own are, so that no error's key holds them.
    """
    given = value.get("engine", "airflow") if isinstance(value, Mapping) else value
    return f"[{getattr(given, 'engine', given)}]"


AnyPlacement = Annotated[
    Annotated[Placement, Tag("[airflow]")] | Annotated[SageMakerTraining, Tag("[sagemaker]")],
    Discriminator(
        _engine,
        custom_error_type="engine",
        custom_error_message="a stage's place is keys and values, and its engine airflow or sagemaker",
    ),
]
