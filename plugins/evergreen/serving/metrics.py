"""What a replica counts, for Prometheus: requests, answers, what was answered, and what is loaded.

A request counts for a version only when that version answered it (200), failed (500) or was at
work when it had waited too long (504); anything else has the version and role ``none``. What is
loaded is not counted but looked up when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

Role = Literal["champion", "canary", "shadow", "none"]
NOBODY = "none"
_SECONDS = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
_PROBABILITIES = tuple(k / 20 for k in range(1, 21))
_AGES = (1, 10, 60, 300, 900, 3600, 3 * 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400)
_VERSIONED = ("model", "version", "role")


@dataclass(frozen=True)
class Loaded:
    """Where a model's present state is looked up.

    :ivar state: gives the model's part of ``/version``.
    :ivar segments: gives how many pieces of the prediction log wait for the store.
    """

    model: str
    state: Callable[[], dict[str, Any]]
    segments: Callable[[], int]


@dataclass(frozen=True)
class Metrics:
    """A replica's metrics, all in one registry of its own."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        ProcessCollector(registry=self.registry)
        made: dict[str, Any] = {
            "requests": self._counter(
                "evergreen_requests_total", "Requests, by HTTP status.", (*_VERSIONED, "code")
            ),
            "seconds": self._histogram(
                "evergreen_request_seconds",
                "From a body's receipt to its answer, without the online store's part.",
                _VERSIONED,
                _SECONDS,
            ),
            "answers": self._counter("evergreen_answers_total", "Answered rows.", _VERSIONED),
            "predictions": self._histogram(
                "evergreen_prediction",
                "Probability of class 1; of the likeliest class where there are more.",
                _VERSIONED,
                _PROBABILITIES,
            ),
            "store": self._histogram(
                "evergreen_store_seconds",
                "What requests waited for the online store.",
                ("model",),
                _SECONDS,
            ),
            "ages": self._histogram(
                "evergreen_feature_age_seconds", "Age of a row's oldest feature.", ("model",), _AGES
            ),
            "fallbacks": self._counter(
                "evergreen_fallbacks_total", "Rows answered with a fallback.", ("model", "kind")
            ),
            "log_failures": self._counter(
                "evergreen_log_failures_total", "Failed writes of the prediction log.", ("model",)
            ),
            "dropped": self._counter(
                "evergreen_shadow_dropped_total",
                "Rows that the candidate didn't answer in the shadow, for want of time.",
                ("model",),
            ),
        }
        object.__setattr__(self, "_made", made)

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def of(self, model: str) -> ModelMetrics:
        """One model's."""
        made: dict[str, Any] = self._made  # type: ignore[attr-defined]  # set when made
        return ModelMetrics(model, made)

    def look_up(self, loaded: Iterable[Loaded]) -> None:
        """Add what is loaded, as it is whenever somebody asks."""
        self.registry.register(_States(tuple(loaded)))

    def page(self) -> tuple[bytes, str]:
        """Everything in Prometheus' text format, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class ModelMetrics:
    """One model's metrics. Looking a label's counter up takes longer than counting, so they are kept."""

    def __init__(self, model: str, made: dict[str, Any]) -> None:
        self._model = model
        self._made = made
        self._child = cache(self._labelled)
        self._child("log_failures")
        self._child("dropped")

    def _labelled(self, name: str, *labels: str) -> Any:
        return self._made[name].labels(self._model, *labels)

    def request(self, version: str, role: Role, code: int, seconds: float | None = None) -> None:
        """A request ended; without ``seconds`` nobody waited for it."""
        self._child("requests", version, role, str(code)).inc()
        if seconds is not None:
            self._child("seconds", version, role).observe(seconds)

    def answered(self, version: str, role: Role, rows: int, likely: Sequence[float]) -> None:
        """Rows were answered.

        :param likely: of classes, the probability that is watched; empty for values.
        """
        self._child("answers", version, role).inc(rows)
        if likely:
            observe = self._child("predictions", version, role).observe
            for value in likely:
                observe(value)

    def looked_up(self, fallbacks: Sequence[str | None], ages: Sequence[float | None]) -> None:
        """Features were read for as many rows."""
        for kind in fallbacks:
            if kind is not None:
                self._child("fallbacks", kind).inc()
        for age in ages:
            if age is not None:
                self._child("ages").observe(age)

    def waited_for_store(self, seconds: float) -> None:
        """A request waited for its features."""
        self._child("store").observe(seconds)

    def log_failed(self) -> None:
        """The prediction log couldn't be written."""
        self._child("log_failures").inc()

    def dropped(self, rows: int) -> None:
        """Rows went without a shadow's answer."""
        self._child("dropped").inc(rows)


class _States:
    """Turns the models' states into gauges."""

    def __init__(self, loaded: tuple[Loaded, ...]) -> None:
        self._loaded = loaded

    def collect(self) -> Iterable[Metric]:
        """As `prometheus_client` asks for it."""
        info = GaugeMetricFamily(
            "evergreen_model_version_info", "Versions that answer.", labels=_VERSIONED
        )
        refused = GaugeMetricFamily(
            "evergreen_model_refused", "Versions that were refused.", labels=("model", "version")
        )
        reachable = GaugeMetricFamily(
            "evergreen_registry_reachable", "Whether the registry answers.", labels=("model",)
        )
        waiting = GaugeMetricFamily(
            "evergreen_log_segments_waiting", "Log segments not in the store.", labels=("model",)
        )
        for one in self._loaded:
            state = one.state()
            if state["version"] is not None:
                info.add_metric((one.model, state["version"], "champion"), 1)
            if state["candidate"] is not None:
                info.add_metric((one.model, state["candidate"], state["mode"]), 1)
            for version in {**state["refused"], **state["candidate_refused"]}:
                refused.add_metric((one.model, version), 1)
            reachable.add_metric((one.model,), float(state["registry_problem"] is None))
            waiting.add_metric((one.model,), one.segments())
        return (info, refused, reachable, waiting)
