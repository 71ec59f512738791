"""`<model>.deploy_sagemaker`: tell SageMaker of the version that went live.

Exists for models that declare `sagemaker`: a model package, an endpoint, or both, by the Amazon
provider's operators. Looks every hour too, for what no event announced, like a rollback. Names
follow from the version, so that running it again changes nothing.
"""

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, get_parsing_context

from evergreen.operators.base import promotions
from evergreen.placing import runnable_models

MODELS = Path(__file__).parents[1] / "include" / "models"

for model in runnable_models(MODELS, get_parsing_context().dag_id):
    if model.sagemaker is None:
        continue
    from evergreen.operators.deployment import deployment_tasks  # it imports boto3

    with DAG(
        dag_id=f"{model.name}.deploy_sagemaker",
        description=f"Tell SageMaker which version of {model.name} is live",
        doc_md=__doc__,
        schedule=AssetOrTimeSchedule(
            timetable=CronTriggerTimetable("@hourly", timezone="UTC"), assets=[promotions(model)]
        ),
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=timedelta(hours=12),
        tags=["evergreen", model.name, "deploy_sagemaker"],
        default_args={"owner": model.owner.team},
    ):
        deployment_tasks(model)
