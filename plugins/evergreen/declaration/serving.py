"""The sections of a model file about a version at work: serving it, baking it, rolling it back."""

from __future__ import annotations

from typing import Literal, Self

from croniter import croniter
from pydantic import Field, field_validator, model_validator

from evergreen.declaration.types import Duration, Finite, Frozen, Share


class Online(Frozen):
    """What a replica does when the online store holds no features, stale ones, or doesn't answer.

    ``reject`` answers 503; ``defaults`` fills in the declared values (missing where none is
    declared); ``last_known`` uses what this replica last read for the same keys, and rejects when
    it never did. ``max_age`` is how old a feature may be; each view's time to live when left out.
    """

    fallback: Literal["reject", "defaults", "last_known"] = "reject"
    max_age: Duration | None = None
    defaults: dict[str, Finite | str | None] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _defaults_are_used(self) -> Self:
        if self.defaults and self.fallback != "defaults":
            raise ValueError("serving.online.defaults goes with fallback: defaults")
        return self


class Limits(Frozen):
    """How large one request may be."""

    rows: int = Field(default=1_000, ge=1)
    body_mb: Finite = Field(default=4.0, gt=0.0)


class Candidate(Frozen):
    """What replicas do with the version that the registry's alias ``candidate`` points at.

    ``shadow``: it answers every request too, only into the prediction log. ``canary``: it answers
    ``share`` of the entities, always the same ones.
    """

    mode: Literal["shadow", "canary"] = "shadow"
    share: Share = 0.1


class Skew(Frozen):
    """How far features as served may differ from the point-in-time join offline.

    A value is a mismatch when it differs by more than ``tolerance`` (relative) or is there on one
    side only; a feature violates when its share of mismatches is above ``mismatch_at_most``.
    """

    tolerance: Finite = Field(default=1e-6, ge=0.0)
    mismatch_at_most: Share = 0.01
    min_rows: int = Field(default=100, ge=1)
    sample: int = Field(default=20_000, ge=1)

    @model_validator(mode="after")
    def _enough_is_compared(self) -> Self:
        if self.sample < self.min_rows:
            raise ValueError(
                f"serving.skew.sample {self.sample} is below min_rows {self.min_rows}: nothing "
                "would ever be judged"
            )
        return self


class Serving(Frozen):
    """Where a model answers requests.

    :ivar replicas: addresses of ``evergreen serve`` processes that promotion, bake and rollback
        ask, each for itself, not through a proxy.
    :ivar within: how long promotion waits until every replica reports the new version.
    """

    replicas: tuple[str, ...] = ()
    within: Duration = Field(default="2m", validate_default=True)
    online: Online = Online()
    limits: Limits = Limits()
    candidate: Candidate = Candidate()
    skew: Skew = Skew()

    @field_validator("replicas")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from urllib.parse import urlsplit

        for address in value:
            parts = urlsplit(address)
            if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
                raise ValueError(
                    f"{address!r} is no replica's address; write it like http://10.0.0.7:8080, "
                    "without credentials: the API key comes from EVERGREEN_SERVING_API_KEY"
                )
        if len({address.rstrip("/") for address in value}) < len(value):
            raise ValueError("a replica is named twice")
        return tuple(address.rstrip("/") for address in value)


class Bake(Frozen):
    """What makes a new version ``verified``, or sends it back.

    By requests, where replicas are declared: smoke requests, then for ``watch`` (wall time) at
    most ``errors`` of its answers may fail (plainly from ``1 / errors`` requests on, of fewer
    surely so), their p95 may take ``latency_p95_ms`` (when left out, the gate's bound or 1.5 times
    the former champion's p95 on the same replicas), and its answers may be ``distribution`` further (PSI) from the former
    champion's on the same requests than they were on the holdout.

    By labels: on the first ``rows`` or more matured rows that it answered in production, it may
    not be surely worse than the former champion on the same rows by more than ``tolerance`` (a
    share of the former's value). Without enough labels it stays unverified.
    """

    watch: Duration = Field(default="10m", validate_default=True)
    every: Duration = Field(default="30s", validate_default=True)
    requests: int = Field(default=20, ge=0)
    errors: Share = 0.01
    latency_p95_ms: Finite | None = Field(default=None, gt=0.0)
    distribution: Finite = Field(default=0.25, gt=0.0)
    rows: int = Field(default=200, ge=20)
    tolerance: Finite = Field(default=0.02, ge=0.0)


class Rollback(Frozen):
    """How rolling back is kept in practice: when to drill it (never when ``drill`` is null)."""

    drill: str | None = "@weekly"

    @field_validator("drill")
    @classmethod
    def _cron(cls, value: str | None) -> str | None:
        if value is not None and not croniter.is_valid(value):
            raise ValueError("a schedule is a cron expression or a preset like @weekly or @daily")
        return value
