"""The sections of a model file about a model at work: monitoring, its triggers, escalation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from evergreen.declaration.metrics import METRICS
from evergreen.declaration.types import Duration, Finite, Frozen, Share

NumberMethod = Literal["wasserstein", "jensenshannon", "ks", "psi"]
CategoryMethod = Literal["jensenshannon", "chisquare", "psi"]
Method = Literal["wasserstein", "jensenshannon", "ks", "psi", "chisquare", "domain_classifier"]

#: A distance from which on a column counts as drifted; for tests the p-value below which.
#: Evidently's defaults, but for the classifier, whose ROC AUC is 0.5 where nothing has changed.
THRESHOLDS: dict[str, float] = {
    "wasserstein": 0.1,
    "jensenshannon": 0.1,
    "psi": 0.1,
    "ks": 0.05,
    "chisquare": 0.05,
    "domain_classifier": 0.65,
}
P_VALUES = frozenset({"ks", "chisquare"})


class Column(Frozen):
    """How one column is watched; ``ignore`` leaves it out."""

    method: Method | None = None
    threshold: Finite | None = Field(default=None, ge=0.0)
    ignore: bool = False


class Drift(Frozen):
    """How inputs, answers and labels are compared with what the live version learned from.

    A column has drifted by its distance, or when its missing values, values out of the learned
    range, or categories never learned rise by more than the declared share of rows. Inputs
    violate when drifted columns hold ``share`` of the model's importance; with ``recurring`` not
    when some partition of the training window looked alike. Of what is measured only ``on``
    raises signals: answers are compared with those to one holdout, which is a short time.
    """

    numeric: NumberMethod = "wasserstein"
    categorical: CategoryMethod = "jensenshannon"
    thresholds: dict[Method, Finite] = Field(default_factory=dict)
    columns: dict[str, Column] = Field(default_factory=dict)
    text: tuple[str, ...] = ()
    share: Share = 0.5
    missing: Share = 0.1
    out_of_range: Share = 0.1
    new_categories: Share = 0.1
    recurring: bool = True
    on: tuple[Literal["inputs", "prediction", "target", "concept"], ...] = (
        "inputs",
        "target",
        "concept",
    )
    concept: tuple[Literal["adwin", "page_hinkley", "ddm"], ...] = ("adwin",)
    sample: int = Field(default=5_000, ge=500)

    def threshold(self, method: str, column: str | None = None) -> float:
        """The threshold of a method, for a column."""
        own = self.columns[column].threshold if column in self.columns else None
        return own if own is not None else self.thresholds.get(method, THRESHOLDS[method])  # type: ignore[call-overload]  # a method's name

    @model_validator(mode="after")
    def _text_is_text(self) -> Self:
        for name, column in self.columns.items():
            if (column.method == "domain_classifier") and name not in self.text:
                raise ValueError(
                    f"monitoring.drift.columns.{name}: domain_classifier is for columns listed in text"
                )
        return self


class Performance(Frozen):
    """When a version has become too bad: worse than on its holdout by more than ``tolerance`` (a
    share of that value), or beyond ``bound``, and surely so, or no better than a naive model."""

    metric: str | None = None
    tolerance: Finite = Field(default=0.1, ge=0.0)
    bound: Finite | None = None
    matured_at_least: Share = 0.5


class Monitoring(Frozen):
    """What is watched of a live version, over the newest ``window`` partitions together.

    Labels that come, or are corrected, more than ``patience`` after their partition still teach
    the next version, but are not measured any more.
    """

    window: int = Field(default=1, ge=1, le=366)
    patience: Duration = Field(default="90d", validate_default=True)
    min_rows: int = Field(default=200, ge=20)
    drift: Drift = Drift()
    performance: Performance = Performance()
    estimate: bool = True


class Violations(Frozen):
    """Retrain when so many of the last so many windows violate."""

    violations: int = Field(default=2, ge=1)
    of: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.violations > self.of:
            raise ValueError(f"{self.violations} violations of {self.of} windows can't happen")
        return self


Event = Literal["escalated", "answered", "promoted", "verified", "rolled_back", "refused", "failed"]


class Smtp(Frozen):
    """A mail, sent by an Airflow connection of type ``smtp``."""

    channel: Literal["smtp"]
    connection: str = "smtp_default"
    to: tuple[str, ...] = Field(min_length=1)
    sender: str | None = None
    on: tuple[Event, ...] = ("escalated", "rolled_back", "refused", "failed")


class Apprise(Frozen):
    """A message by an Airflow connection of type ``apprise``: webhooks, chat, pagers."""

    channel: Literal["apprise"]
    connection: str = "apprise_default"
    tag: str = "all"
    on: tuple[Event, ...] = ("escalated", "rolled_back", "refused", "failed")


Channel = Annotated[Smtp | Apprise, Field(discriminator="channel")]


class Escalation(Frozen):
    """When retraining doesn't help: how often it may fail to, and who is asked then.

    ``levels`` rise with each futile retrain, the last one when automatic retraining has stopped.
    ``assigned`` are Airflow users who may answer; anybody with the right when empty.
    """

    futile_retrains: int = Field(default=2, ge=1)
    levels: tuple[str, ...] = Field(default=("P3", "P2", "P1"), min_length=1)
    assigned: tuple[str, ...] = ()
    answer_within: Duration = Field(default="5d", validate_default=True)
    notify: tuple[Channel, ...] = ()


class Kpi(Frozen):
    """A business figure: the mean over rows of what ``function`` (``module:name`` in the model's
    folder) says of each row's label and answer. Named, and used, like a metric."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    function: str = Field(pattern=r"^[A-Za-z_]\w*:[A-Za-z_]\w*$")
    greater_is_better: bool

    @field_validator("name")
    @classmethod
    def _own_name(cls, value: str) -> str:
        if value in METRICS:
            raise ValueError(f"{value} is a metric's name; give the KPI one of its own")
        return value
