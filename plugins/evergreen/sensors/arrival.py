"""Hints that a partition has landed on S3: by its key, or by the bucket's events in a queue.

A hint starts ``<model>.ingest`` early. What has arrived is found by listing the landing folder, so
a lost hint costs the time until the next sweep, and a false or doubled one nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor
from airflow.providers.amazon.aws.triggers.sqs import SqsSensorTrigger
from airflow.sdk import AssetWatcher
from airflow.sdk.exceptions import AirflowSkipException

from evergreen.declaration import Declaration, DeclarationError
from evergreen.hooks.workspace import workspace_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.workspace import Workspace


class AwaitPartitionSensor(S3KeySensor):
    """Wait, without a slot, for the files of the partition that is expected next.

    That is the one after the newest registered; before the first there is none to expect, and the
    task is skipped.

    :param model: the model's declaration.
    """

    template_fields: Sequence[str] = ()

    def __init__(self, *, model: Declaration, **kwargs: Any) -> None:
        declared = model.data.arrival
        if declared is None:
            raise DeclarationError(f"{model.name}: the declaration has no data.arrival")
        kwargs.setdefault("poke_interval", declared.poke.total_seconds())
        kwargs.setdefault("aws_conn_id", declared.connection)
        kwargs.setdefault("region_name", declared.region)
        super().__init__(bucket_key=[], deferrable=True, **kwargs)
        self.model = model

    def execute(self, context: Context) -> None:
        self.bucket_key = expected(self.model, workspace_of(self.model))
        if not self.bucket_key:
            raise AirflowSkipException(f"{self.model.name}: no partition is registered yet")
        self.log.info("expected next: %s", ", ".join(self.bucket_key))
        super().execute(context)


def expected(model: Declaration, workspace: Workspace) -> list[str]:
    """The S3 addresses of the files that make up the next partition; none before the first."""
    from evergreen.ledger import records

    with workspace.ledger.read() as session:
        newest = records.watermark(session, model.name)
    if newest is None:
        return []
    key = model.data.partition.key(newest)
    uris = [model.data.uri, *(source.uri for source in model.data.sources.values())]
    return [uri.replace("{partition}", key) for uri in uris if uri.startswith("s3://")]


def queue_watcher(model: Declaration) -> AssetWatcher:
    """What watches the declared queue in the triggerer.

    It takes a message off the queue and emits an event; what the message says isn't looked at.
    """
    declared = model.data.arrival
    if declared is None or declared.queue is None:
        raise DeclarationError(f"{model.name}: the declaration has no data.arrival.queue")
    return AssetWatcher(
        name=f"{model.name}.arrivals",
        trigger=SqsSensorTrigger(
            sqs_queue=declared.queue,
            aws_conn_id=declared.connection,
            region_name=declared.region,
            waiter_delay=int(declared.poke.total_seconds()),
        ),
    )
