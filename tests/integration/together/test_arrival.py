"""An SQS queue that gets a bucket's events: a real triggerer takes the message, and ingest starts."""

from __future__ import annotations

import time
from typing import Any

import pytest

from evergreen.airflow_client import FINISHED
from evergreen.ledger import records
from tests.integration.together.shared import Shared
from tests.scenarios.project import month

pytestmark = [pytest.mark.minutes(4), pytest.mark.integration, pytest.mark.timeout(600)]

MODEL = "hinted"
DAG_ID = f"{MODEL}.ingest"


def ended(shared: Shared, count: int) -> list[dict[str, Any]]:
    """The runs of ingest in the order of their end, once there are so many."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        runs = [run for run in shared.client.dag_runs(DAG_ID) if run["state"] in FINISHED]
        if len(runs) >= count:
            return sorted(runs, key=lambda run: str(run["end_date"]))
        time.sleep(0.5)  # between looks at the triggerer's work
    raise AssertionError(f"{shared.client.dag_runs(DAG_ID)} instead of {count} ended runs")


def test_a_message_starts_ingest_and_a_doubled_one_changes_nothing(shared: Shared) -> None:
    sqs = shared.aws.client("sqs")
    queue = sqs.create_queue(QueueName="landed")["QueueUrl"]
    arrival = {"queue": queue, "poke": "1s"}
    project = shared.model(MODEL, "ingest", "score", data={"arrival": arrival})
    shared.client._send("PATCH", f"/dags/{MODEL}.score", json={"is_paused": True})
    project.land(m2024_01=month("2024-01"))
    for count in (1, 2):
        sqs.send_message(QueueUrl=queue, MessageBody="an event of the bucket's")
        *_, run = ended(shared, count)
        assert run["run_type"] == "asset_triggered"
        (task,) = shared.client.task_instances(DAG_ID, run["dag_run_id"])
        assert task["state"] == ("success" if count == 1 else "skipped")
    with project.workspace.ledger.read() as session:
        assert [p.key for p in records.latest_partitions(session, MODEL)] == ["2024-01"]
    left = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"]
    assert (left["ApproximateNumberOfMessages"], len(shared.client.dag_runs(DAG_ID))) == ("0", 2)
