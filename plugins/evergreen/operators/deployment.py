"""Deploy: say which version is live, then let the Amazon provider's operators tell SageMaker.

The provider's operators create; these look first, so that a task run again, or a sweep that finds
nothing new, changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.providers.amazon.aws.operators.sagemaker import (
    SageMakerEndpointConfigOperator,
    SageMakerEndpointOperator,
    SageMakerModelOperator,
    SageMakerRegisterModelVersionOperator,
)
from airflow.providers.amazon.aws.utils.sagemaker import ApprovalStatus
from airflow.sdk import XComArg, chain
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred

from evergreen.declaration import Declaration, DeclarationError
from evergreen.declaration.compute import SageMakerDeployment
from evergreen.errors import UnavailableError
from evergreen.operators.base import StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.lifecycle.deployment import Deployment
    from evergreen.workspace import Workspace

# A version's number in a package's own properties, by which it is found again.
_VERSION = "evergreen.version"


class PlanDeploymentOperator(StageOperator):
    """Say which version is live and what SageMaker is to call it; skip while none is."""

    stage = "deploy"

    def run_stage(self, workspace: Workspace, context: Context) -> Deployment:
        from evergreen.lifecycle.deployment import plan

        found = plan(self.model, workspace)
        if found is None:
            raise AirflowSkipException(f"{self.model.name}: no version is live")
        return found

    def finish(
        self, workspace: Workspace, context: Context, result: Any, reference: dict[str, Any]
    ) -> None:
        for name in ("version", "name", "archive", "environment"):
            context["ti"].xcom_push(key=name, value=getattr(result, name))


class RegisterVersionOperator(SageMakerRegisterModelVersionOperator):
    """Register a version as a model package, unless its group holds it.

    :param version: the version's number. (templated)
    """

    template_fields: Sequence[str] = (
        *SageMakerRegisterModelVersionOperator.template_fields,
        "version",
    )

    def __init__(self, *, version: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.version = version

    def execute(self, context: Context) -> str:
        known = self._known()
        if known is not None:
            self.log.info("version %s is registered: %s", self.version, known)
            return known
        # Requests as Evergreen's server takes them; the provider would say CSV.
        container = {"Image": self.image_uri, "ModelDataUrl": self.model_url}
        kinds = ["application/json", "text/csv"]
        self.extras = {
            "InferenceSpecification": {
                "Containers": [container],
                "SupportedContentTypes": kinds,
                "SupportedResponseMIMETypes": ["application/json"],
            },
            "CustomerMetadataProperties": {_VERSION: self.version},
        }
        arn: str = super().execute(context)
        return arn

    def _known(self) -> str | None:
        """The package that this version was registered as."""
        from botocore.exceptions import ClientError

        client = self.hook.conn
        pages = client.get_paginator("list_model_packages").paginate(
            ModelPackageGroupName=self.package_group_name
        )
        try:
            found = [
                each["ModelPackageArn"]
                for page in pages
                for each in page["ModelPackageSummaryList"]
            ]
        except ClientError as error:
            if error.response["Error"]["Code"] == "ValidationException":  # there is no such group
                return None
            raise
        for arn in found:
            said = client.describe_model_package(ModelPackageName=arn)
            if said.get("CustomerMetadataProperties", {}).get(_VERSION) == self.version:
                return str(arn)
        return None


class CreateModelOperator(SageMakerModelOperator):
    """Create the version's model in SageMaker, unless it is there."""

    def execute(self, context: Context) -> dict[str, Any]:
        name = self.config["ModelName"]
        if _there(partial(self.hook.describe_model, name)):
            return {"ModelName": name}
        super().execute(context)
        return {"ModelName": name}


class CreateEndpointConfigOperator(SageMakerEndpointConfigOperator):
    """Create the version's endpoint configuration, unless it is there."""

    def execute(self, context: Context) -> dict[str, Any]:
        name = self.config["EndpointConfigName"]
        if _there(partial(self.hook.describe_endpoint_config, name)):
            return {"EndpointConfigName": name}
        super().execute(context)
        return {"EndpointConfigName": name}


class PointEndpointOperator(SageMakerEndpointOperator):
    """Let the endpoint run the version's configuration: created when missing, else updated.

    Waits in the triggerer until it is in service. An endpoint that changes already is waited for
    first; SageMaker takes no second change then.
    """

    def execute(self, context: Context) -> dict[str, Any]:
        name, config = self.config["EndpointName"], self.config["EndpointConfigName"]
        found = _there(partial(self.hook.describe_endpoint, name))
        status = found["EndpointStatus"] if found else None
        if found and status in {"Creating", "Updating", "SystemUpdating", "RollingBack"}:
            self._wait(name)
        if found and status == "InService" and found["EndpointConfigName"] == config:
            self.log.info("the endpoint %s runs %s", name, config)
            return {"EndpointName": name, "EndpointConfigName": config}
        self.operation = "update" if found else "create"
        try:
            super().execute(context)
        except TaskDeferred as deferred:
            deferred.method_name = "pointed"
            raise
        return {"EndpointName": name, "EndpointConfigName": config}

    def execute_complete(
        self, context: Context, event: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """What another had begun is over: look, and go on when it runs another configuration."""
        super().execute_complete(context, event)
        return self.execute(context)

    def pointed(self, context: Context, event: dict[str, Any] | None = None) -> dict[str, Any]:
        """What this task had begun is over.

        :raises UnavailableError: when the endpoint runs another configuration all the same: SageMaker
            goes back to the one before when the new one doesn't come up.
        """
        super().execute_complete(context, event)
        name, config = self.config["EndpointName"], self.config["EndpointConfigName"]
        found = self.hook.describe_endpoint(name)
        if found["EndpointConfigName"] != config:
            raise UnavailableError(
                f"the endpoint {name} was to run {config} and runs {found['EndpointConfigName']}: "
                f"{found.get('FailureReason') or 'SageMaker gives no reason'}. Look for it in the "
                "endpoint's log; the task is tried again."
            )
        return {"EndpointName": name, "EndpointConfigName": config}

    def _wait(self, name: str) -> None:
        from airflow.providers.amazon.aws.triggers.sagemaker import SageMakerTrigger

        self.defer(
            trigger=SageMakerTrigger(
                job_name=name,
                job_type="endpoint",
                waiter_delay=self.check_interval,
                aws_conn_id=self.aws_conn_id,
                region_name=self.region_name,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.max_ingestion_time),
        )


def deployment_tasks(model: Declaration) -> None:
    """The tasks of ``<model>.deploy_sagemaker``, inside its DAG.

    :raises DeclarationError: when the model declares no such deployment.
    """
    declared = model.sagemaker
    if declared is None:
        raise DeclarationError(f"{model.name}: the declaration has no section sagemaker")
    plan = PlanDeploymentOperator(task_id="plan", model=model)
    if declared.package_group:
        _register(model, declared, plan)
    if declared.endpoint:
        _run(declared, plan)


def _register(
    model: Declaration, declared: SageMakerDeployment, plan: PlanDeploymentOperator
) -> None:
    RegisterVersionOperator(
        task_id="register",
        image_uri=declared.image,
        model_url=_planned(plan, "archive"),
        package_group_name=declared.package_group,
        package_group_desc=model.description,
        package_desc=f"{model.name}, promoted by Evergreen",
        model_approval=ApprovalStatus(declared.approval),
        version=_planned(plan, "version"),
        aws_conn_id=declared.connection,
        region_name=declared.region,
    )


def _run(declared: SageMakerDeployment, plan: PlanDeploymentOperator) -> None:
    aws: dict[str, Any] = {"aws_conn_id": declared.connection, "region_name": declared.region}
    name = _planned(plan, "name")
    create = CreateModelOperator(
        task_id="create_model",
        config={
            "ModelName": name,
            "ExecutionRoleArn": declared.role,
            "PrimaryContainer": {
                "Image": declared.image,
                "ModelDataUrl": _planned(plan, "archive"),
                "Environment": _planned(plan, "environment"),
            },
        },
        **aws,
    )
    configure = CreateEndpointConfigOperator(
        task_id="create_endpoint_config",
        config={
            "EndpointConfigName": name,
            "ProductionVariants": [
                {
                    "VariantName": "champion",
                    "ModelName": name,
                    "InstanceType": declared.instance,
                    "InitialInstanceCount": declared.count,
                }
            ],
        },
        **aws,
    )
    point = PointEndpointOperator(
        task_id="point_endpoint",
        config={"EndpointName": declared.endpoint, "EndpointConfigName": name},
        check_interval=int(declared.poke.total_seconds()),
        deferrable=True,
        **aws,
    )
    chain(create, configure, point)


def _planned(plan: PlanDeploymentOperator, key: str) -> Any:
    """What the plan has pushed under ``key``, once it has run."""
    return XComArg(plan, key=key)


def _there(describe: Any) -> dict[str, Any] | None:
    """What SageMaker says of a thing; None when there is no such thing."""
    from botocore.exceptions import ClientError

    try:
        found: dict[str, Any] = describe()
    except ClientError as error:
        said = error.response["Error"]
        if said["Code"] == "ValidationException" and "could not find" in said["Message"].lower():
            return None
        raise
    return found
