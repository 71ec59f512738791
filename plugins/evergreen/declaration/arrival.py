"""How AWS hints that a partition has landed; the sweep finds it anyway."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal, Self

from pydantic import Field, model_validator

from evergreen.declaration.compute import Aws
from evergreen.declaration.types import Duration


class Arrival(Aws):
    """A hint to look at the landing folder now, rather than at the next sweep.

    Exactly one of the two is declared.

    :ivar sensor: ``s3`` waits for the key of the partition that is expected next.
    :ivar queue: the URL of an SQS queue to which the bucket sends its events.
    :ivar poke: how long between two looks.
    """

    sensor: Literal["s3"] | None = None
    queue: str | None = Field(default=None, pattern=r"^https?://\S+$")
    poke: Duration = Field(default="60s", validate_default=True)

    @model_validator(mode="after")
    def _one_hint(self) -> Self:
        if (self.sensor is None) == (self.queue is None):
            raise ValueError("declare exactly one of sensor (s3) and queue (an SQS queue's URL)")
        if not timedelta(seconds=1) <= self.poke <= timedelta(hours=1):
            raise ValueError("poke lies between 1s and 1h")
        return self
