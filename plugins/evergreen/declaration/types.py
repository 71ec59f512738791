"""The small types a declaration is made of: durations, periods, dotted paths."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

_DURATION = re.compile(r"(\d+)\s*(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_duration(value: Any) -> timedelta:
    """Read ``7d``, ``12h``, ``90m`` or ``30s``.

    :raises ValueError: for anything else.
    """
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(str(value).strip())
    if match is None:
        raise ValueError("a duration is a whole number and a unit of s, m, h, d or w, like 7d")
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def format_duration(value: timedelta) -> str:
    """Write a duration the way a declaration spells it, in its largest whole unit.

    >>> format_duration(timedelta(days=7))
    '7d'
    >>> format_duration(timedelta(minutes=90))
    '90m'
    """
    seconds = int(value.total_seconds())
    for unit in ("d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{seconds // _SECONDS[unit]}{unit}"
    return f"{seconds}s"


Duration = Annotated[
    timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)
]


def _file_name(value: str) -> str:
    """A file directly in the model's folder, by its name alone.

    :raises ValueError: for anything that could be elsewhere.
    """
    if not value.isprintable() or value.startswith(".") or set(value) & set("/\\:"):
        raise ValueError("a file of the model's folder is named by its name alone, like suite.json")
    return value


FileName = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_file_name)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Frozen(BaseModel):
    """A declared object: it can't change, and a key it doesn't know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class Period(StrEnum):
    """How event time is cut into partitions. A partition's key sorts as its time does."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"

    @property
    def pattern(self) -> str:
        """The ``strptime`` pattern of a partition's key."""
        return {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}[self.value]

    def key(self, moment: datetime) -> str:
        """The key of the partition that holds ``moment``."""
        return moment.astimezone(UTC).strftime(self.pattern)

    def start(self, key: str) -> datetime:
        """The first moment of the partition ``key``.

        :raises ValueError: when ``key`` isn't exactly a key of this period.
        """
        moment = datetime.strptime(key, self.pattern).replace(tzinfo=UTC)
        if self.key(moment) != key:
            raise ValueError(f"{key!r} is not written as {self.pattern}")
        return moment

    def end(self, key: str) -> datetime:
        """The first moment after the partition ``key``."""
        start = self.start(key)
        if self is Period.MONTH:
            return (start + timedelta(days=31)).replace(day=1)
        return start + (timedelta(days=1) if self is Period.DAY else timedelta(hours=1))
