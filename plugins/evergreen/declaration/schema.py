"""The model file as frozen objects: what a team writes once, in one folder, per model.

Each class is one section of ``model.yaml``. Defaults are what a careful team would choose; a
value that can't be meant is refused here, before any task runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from croniter import croniter
from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from evergreen.declaration.arrival import Arrival
from evergreen.declaration.compute import AnyPlacement, SageMakerDeployment, SageMakerTraining
from evergreen.declaration.metrics import METRICS, Metric, Task
from evergreen.declaration.scorecard import DeclaredTest, TestId
from evergreen.declaration.serving import Bake, Rollback, Serving
from evergreen.declaration.types import Duration, FileName, Finite, Frozen, Name, Period, Share
from evergreen.declaration.watching import Escalation, Kpi, Monitoring, Violations


def _cron(value: str | None) -> str | None:
    if value is not None and not croniter.is_valid(value):
        raise ValueError("a schedule is a cron expression or a preset like @monthly or @daily")
    return value


def _partitioned(uri: str) -> str:
    if uri.count("{partition}") != 1:
        raise ValueError("the uri holds {partition} exactly once, like landing/{partition}.parquet")
    if not uri.endswith((".parquet", ".csv")):
        raise ValueError("the uri ends in .parquet or .csv")
    if ".." in uri.split("/"):
        raise ValueError("the uri doesn't climb out of its folder with ..")
    return uri


class Owner(Frozen):
    """Who answers for the model."""

    team: str
    contact: str


class Label(Frozen):
    """The column to predict, and when its value becomes known.

    With a ``uri`` labels land in a table of their own, cut by when they became known; ``key``
    names the columns by which a label finds its row. A later label for the same key corrects it.
    """

    column: str
    timestamp: str | None = None
    delay: Duration | None = None
    uri: str | None = None
    key: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_way_to_mature(self) -> Self:
        if (self.timestamp is None) == (self.delay is None):
            raise ValueError(
                "say when a label is known by exactly one of timestamp (a column) or delay (like 30d)"
            )
        if self.uri is not None:
            _partitioned(self.uri)
            if self.timestamp is None or not self.key:
                raise ValueError(
                    "labels in a table of their own need timestamp (when each became known) and "
                    "key (the columns by which a label finds its row)"
                )
            if len({*self.key, self.column, self.timestamp}) < len(self.key) + 2:
                raise ValueError("label.key names columns twice, or the label's own")
        elif self.key:
            raise ValueError("label.key goes with label.uri, and only with it")
        return self


class Source(Frozen):
    """A further raw table that arrives with each partition and only feeds features."""

    uri: str
    event_timestamp: str = "event_timestamp"

    _partitioned = field_validator("uri")(_partitioned)


class Data(Frozen):
    """Where raw rows land, how they are cut by event time, and what identifies a row."""

    uri: str
    partition: Period
    timezone: str = "UTC"
    event_timestamp: str = "event_timestamp"
    entities: tuple[str, ...] = Field(min_length=1)
    label: Label
    sources: dict[Name, Source] = Field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    sweep: str = "*/15 * * * *"
    arrival: Arrival | None = None

    _uri = field_validator("uri")(_partitioned)
    _sweep = field_validator("sweep")(_cron)

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        from zoneinfo import ZoneInfo

        try:  # to list all zones takes 10 ms of every parse, for each model
            ZoneInfo(value)
        except (KeyError, OSError, ValueError):
            raise ValueError("the timezone is an IANA name like UTC or Europe/Vienna") from None
        return value

    @model_validator(mode="after")
    def _distinct_columns(self) -> Self:
        named = [self.event_timestamp, self.label.column, *self.entities]
        if self.label.timestamp and self.label.uri is None:
            named.append(self.label.timestamp)
        if {"data", "labels"} & set(self.sources):
            raise ValueError(
                "a source isn't named data or labels: those are the model's own tables"
            )
        twice = sorted({column for column in named if named.count(column) > 1})
        if twice:
            raise ValueError(f"the column {twice[0]} is named for two things")
        for key in self.exclude:
            self.partition.start(key)
        if self.arrival and self.arrival.sensor == "s3" and not self.uri.startswith("s3://"):
            raise ValueError(
                f"arrival.sensor s3 waits for a key, but data.uri {self.uri} is not on s3://"
            )
        return self


class Features(Frozen):
    """The Feast objects and prepare functions of a model, by module name in its folder."""

    module: Name
    service: Name


class Validation(Frozen):
    """The Great Expectations suite, and how many bad rows may be set aside."""

    suite: FileName | None = None
    quarantine_at_most: Share = 0.02


class Search(Frozen):
    """Successive halving over a grid of parameters; its result is reused until asked again."""

    parameters: dict[str, list[Any]] = Field(min_length=1)
    candidates: int = Field(default=16, ge=2, le=512)
    factor: int = Field(default=3, ge=2, le=10)
    folds: int = Field(default=3, ge=2, le=10)


class Window(Frozen):
    """Which partitions a candidate learns from."""

    kind: Literal["expanding", "sliding"] = "expanding"
    length: Duration | None = None
    min_rows: int = Field(default=100, ge=10)
    skip_recent: Duration = Field(default="0d", validate_default=True)

    @model_validator(mode="after")
    def _length_slides(self) -> Self:
        if (self.kind == "sliding") != (self.length is not None):
            raise ValueError("length goes with kind: sliding, and only with it")
        return self


class Holdout(Frozen):
    """The newest matured rows, kept from training to judge candidate and champion on."""

    length: Duration = Field(default="7d", validate_default=True)
    embargo: Duration = Field(default="0d", validate_default=True)
    min_rows: int = Field(default=200, ge=20)


class Training(Frozen):
    """How a candidate is made."""

    estimator: str = Field(pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$")
    parameters: dict[str, Any] = Field(default_factory=dict)
    search: Search | None = None
    window: Window = Window()
    holdout: Holdout = Holdout()
    refit: bool = False
    seed: int = Field(default=20130101, ge=0, le=2**32 - 1)
    trusted_types: tuple[str, ...] = ()


class Evaluation(Frozen):
    """What a candidate and the champion are measured by: metrics, and the model's own KPI."""

    kpi: Kpi | None = None
    primary: str
    metrics: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    min_slice_rows: int = Field(default=500, ge=20)
    baseline: Literal["prior", "mean", "median"] | None = None

    @field_validator("primary", "metrics")
    @classmethod
    def _known(cls, value: str | tuple[str, ...], info: ValidationInfo) -> str | tuple[str, ...]:
        kpi = info.data.get("kpi")
        known = (*METRICS, *([kpi.name] if kpi else []))
        for name in (value,) if isinstance(value, str) else value:
            if name not in known:
                raise ValueError(f"{name!r} is no known metric; known are {', '.join(known)}")
        return value


class Fairness(Frozen):
    """The largest difference of selection rate tolerated between values of a column."""

    column: str
    disparity_at_most: Share


class Approval(Frozen):
    """Ask a person only on the named occasions."""

    on: tuple[Literal["bootstrap", "incomparable", "escalated"], ...] = Field(min_length=1)


class Gate(Frozen):
    """What a candidate must show before it becomes champion."""

    floors: dict[str, Finite] = Field(default_factory=dict)
    slice_floors: dict[str, Finite] = Field(default_factory=dict)
    margin: Finite = Field(default=0.0, ge=0.0)
    confidence: float = Field(default=0.95, ge=0.8, lt=1.0)
    promote_when: Literal["superior", "non_inferior"] = "superior"
    resample: Literal["row", "hour", "day"] = "row"
    resamples: int = Field(default=2000, ge=200, le=100_000)
    latency_p95_ms: Finite = Field(default=100.0, gt=0.0)
    memory_mb: Finite = Field(default=2048.0, gt=0.0)
    fairness: tuple[Fairness, ...] = ()
    approval: Literal["never", "always"] | Approval = "never"


class NewData(Frozen):
    """Retrain when this many labelled rows have matured since the last training."""

    min_rows: int = Field(ge=1)


class Budget(Frozen):
    """At most this many automatic retrains in any span of this length."""

    runs: int = Field(ge=1)
    per: Duration


class Triggers(Frozen):
    """What may ask for a retrain, and how often asking is enough."""

    schedule: str | None = None
    new_data: NewData | None = None
    performance: Violations | None = None
    drift: Violations | None = None
    cooldown: Duration = Field(default="0d", validate_default=True)
    budget: Budget | None = None

    _schedule = field_validator("schedule")(_cron)


Stage = Literal[
    "ingest",
    "arbitrate",
    "extract",
    "validate_data",
    "prepare",
    "train",
    "evaluate",
    "check_infrastructure",
    "gate",
    "promote",
    "score",
    "monitor",
    "escalate",
    "bake",
    "roll_back",
    "deploy",
]


class Declaration(Frozen):
    """A model: one ``model.yaml``."""

    name: Name
    task: Task
    description: str = ""
    owner: Owner
    data: Data
    features: Features | None = None
    validation: Validation = Validation()
    training: Training
    evaluation: Evaluation
    gate: Gate = Gate()
    monitoring: Monitoring = Monitoring()
    triggers: Triggers = Triggers()
    escalation: Escalation = Escalation()
    serving: Serving = Serving()
    bake: Bake = Bake()
    rollback: Rollback = Rollback()
    compute: dict[Stage, AnyPlacement] = Field(default_factory=dict)
    sagemaker: SageMakerDeployment | None = None
    ml_test_score: dict[TestId, DeclaredTest] = Field(default_factory=dict)

    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """The model's folder, where its modules and suite are."""
        return self._folder

    @property
    def primary(self) -> Metric:
        """The metric the gate judges by."""
        return self.metric(self.evaluation.primary)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The primary metric first, then the others and the KPI, each once."""
        asked, kpi = self.evaluation, self.evaluation.kpi
        return tuple(dict.fromkeys((asked.primary, *asked.metrics, *([kpi.name] if kpi else []))))

    def metric(self, name: str) -> Metric:
        """A metric, or the model's own KPI, by name.

        :raises KeyError: for a name that is neither.
        :raises ValueError: for a metric that does not measure this task.
        """
        kpi = self.evaluation.kpi
        if kpi is not None and name == kpi.name:
            tasks = frozenset({self.task})
            return Metric(name, tasks, kpi.greater_is_better, kpi.function, self.folder)
        fitting = [m.name for m in METRICS.values() if self.task in m.tasks]
        if self.task not in METRICS[name].tasks:
            raise ValueError(
                f"{name} does not measure {self.task}; what does: {', '.join(fitting)}"
            )
        return METRICS[name]

    @property
    def baseline(self) -> str:
        """The naive model every candidate must beat."""
        return self.evaluation.baseline or ("prior" if self.task.classifies else "mean")

    @field_validator("compute")
    @classmethod
    def _engines(cls, value: dict[Stage, AnyPlacement]) -> dict[Stage, AnyPlacement]:
        for stage, place in value.items():
            if isinstance(place, SageMakerTraining) and stage != "train":
                raise ValueError(f"engine sagemaker is for train, not for {stage}")
        return value

    @model_validator(mode="after")
    def _trained_in_one_place(self) -> Self:
        if self.training.refit and isinstance(self.compute.get("train"), SageMakerTraining):
            raise ValueError(
                "training.refit fits again while promoting, on Airflow's worker; it doesn't go "
                "with compute.train.engine sagemaker"
            )
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        for name in self.metrics:
            self.metric(name)
        watched = self.monitoring.performance.metric
        if watched is not None and watched not in self.metrics:
            raise ValueError(
                f"monitoring.performance watches {watched}, which evaluation doesn't measure; "
                f"measured are {', '.join(self.metrics)}"
            )
        for section in ("floors", "slice_floors"):
            unmeasured = set(getattr(self.gate, section)) - set(self.metrics)
            if unmeasured:
                raise ValueError(
                    f"gate.{section} bounds {min(unmeasured)}, which evaluation doesn't measure; "
                    f"measured are {', '.join(self.metrics)}"
                )
        if self.gate.slice_floors and not self.evaluation.slices:
            raise ValueError("gate.slice_floors needs evaluation.slices to name columns")
        if self.gate.fairness and self.task is not Task.BINARY:
            raise ValueError("gate.fairness compares selection rates: binary_classification only")
        if (self.baseline == "prior") != self.task.classifies:
            raise ValueError(f"evaluation.baseline {self.baseline} is not for {self.task}")
        return self
