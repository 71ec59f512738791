"""`<model>.monitor`: watch the live version: labels, drift, performance, and the signals they raise.

Runs after every scoring, and after label files that land by themselves. What it measured is in
the ledger, and what labels say of a version that isn't verified yet; the arbiter in
`<model>.retrain` starts next and reads all of it. Where replicas are declared, what they answered
is made Parquet, and the features that they saw are compared with those joined offline.
"""

from datetime import timedelta
from pathlib import Path

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset, chain, get_parsing_context

from evergreen.operators.baking import BakeOperator
from evergreen.operators.compaction import CompactLogOperator
from evergreen.operators.drift import DetectDriftOperator
from evergreen.operators.monitoring import JoinLabelsOperator, RaiseSignalsOperator
from evergreen.operators.performance import MeasurePerformanceOperator
from evergreen.operators.skew import DetectSkewOperator
from evergreen.placing import runnable_models

MODELS = Path(__file__).parents[1] / "include" / "models"

for model in runnable_models(MODELS, get_parsing_context().dag_id):
    with DAG(
        dag_id=f"{model.name}.monitor",
        description=f"Watch the live version of {model.name}",
        doc_md=__doc__,
        schedule=[Asset(f"x-evergreen://{model.name}/predictions")],
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=timedelta(hours=6),
        tags=["evergreen", model.name, "monitor"],
        default_args={"owner": model.owner.team},
    ):
        labels = JoinLabelsOperator(task_id="join_labels", model=model)
        drift = DetectDriftOperator(task_id="detect_drift", model=model, labels=labels.output)
        performance = MeasurePerformanceOperator(
            task_id="measure_performance", model=model, labels=labels.output
        )
        signals = RaiseSignalsOperator(
            task_id="raise_signals",
            model=model,
            labels=labels.output,
            drift=drift.output,
            performance=performance.output,
        )
        bake = BakeOperator(task_id="bake", model=model, part="labels")
        # A teardown: the arbiter is told also when a task before failed, or had nothing to do.
        watched = EmptyOperator(
            task_id="announce", outlets=[Asset(f"x-evergreen://{model.name}/watched")]
        ).as_teardown()
        chain(signals, bake)
        chain([labels, bake], watched)
        if model.serving.replicas:
            compaction = CompactLogOperator(task_id="compact_log", model=model)
            skew = DetectSkewOperator(task_id="detect_skew", model=model)
            chain(compaction, skew, watched)
            chain(compaction, watched)
