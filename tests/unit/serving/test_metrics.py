"""What a replica counts can be read by Prometheus, under the names that baking reads."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from evergreen.serving.metrics import Loaded, Metrics

ORDER = ("model", "version", "role", "code", "kind", "le")


def page(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Sample name and label values, in `ORDER` → value."""
    text, kind = metrics.page()
    assert kind.startswith("text/plain")
    return {
        (sample.name, tuple(sample.labels[k] for k in ORDER if k in sample.labels)): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_requests_and_answers_are_counted_by_version_and_role() -> None:
    metrics = Metrics()
    one = metrics.of("example")
    one.request("7", "champion", 200, 0.004)
    one.request("7", "champion", 500, 0.004)
    one.request("9", "shadow", 200)
    one.answered("7", "champion", 3, [0.02, 0.97, 0.5])
    one.answered("8", "champion", 2, [])
    one.looked_up([None, "defaults"], [12.0, None])
    one.waited_for_store(0.5)
    one.log_failed()
    one.dropped(5)
    found = page(metrics)
    assert found["evergreen_requests_total", ("example", "7", "champion", "500")] == 1
    assert found["evergreen_requests_total", ("example", "9", "shadow", "200")] == 1
    assert found["evergreen_request_seconds_count", ("example", "7", "champion")] == 2
    assert ("evergreen_request_seconds_count", ("example", "9", "shadow")) not in found
    assert found["evergreen_answers_total", ("example", "7", "champion")] == 3
    assert found["evergreen_answers_total", ("example", "8", "champion")] == 2
    assert found["evergreen_prediction_bucket", ("example", "7", "champion", "0.05")] == 1
    assert found["evergreen_prediction_bucket", ("example", "7", "champion", "0.5")] == 2
    assert found["evergreen_prediction_bucket", ("example", "7", "champion", "1.0")] == 3
    assert ("evergreen_prediction_count", ("example", "8", "champion")) not in found
    assert found["evergreen_fallbacks_total", ("example", "defaults")] == 1
    assert found["evergreen_feature_age_seconds_count", ("example",)] == 1
    assert found["evergreen_store_seconds_sum", ("example",)] == 0.5
    assert found["evergreen_log_failures_total", ("example",)] == 1
    assert found["evergreen_shadow_dropped_total", ("example",)] == 5


def test_buckets_of_predictions_are_a_twentieth_apart() -> None:
    metrics = Metrics()
    metrics.of("example").answered("1", "champion", 1, [0.5])
    bounds = [
        float(labels[-1])
        for (name, labels), _ in page(metrics).items()
        if name == "evergreen_prediction_bucket"
    ]
    assert bounds == [*(k / 20 for k in range(1, 21)), float("inf")]


def test_what_is_loaded_is_looked_up_when_it_is_asked_for() -> None:
    state: dict[str, Any] = {
        "version": None, "candidate": None, "mode": "shadow", "refused": {},
        "candidate_refused": {"9": "NaN"}, "registry_problem": "down",
    }  # fmt: skip
    metrics = Metrics()
    metrics.look_up([Loaded("example", lambda: state, lambda: 3)])
    found = page(metrics)
    assert found["evergreen_registry_reachable", ("example",)] == 0
    assert found["evergreen_log_segments_waiting", ("example",)] == 3
    assert not [name for name, _ in found if name == "evergreen_model_version_info"]
    state |= {"version": "7", "candidate": "9", "refused": {"8": "NaN"}, "registry_problem": None}
    found = page(metrics)
    assert found["evergreen_registry_reachable", ("example",)] == 1
    assert found["evergreen_model_version_info", ("example", "7", "champion")] == 1
    assert found["evergreen_model_version_info", ("example", "9", "shadow")] == 1
    assert found["evergreen_model_refused", ("example", "8")] == 1
    assert found["evergreen_model_refused", ("example", "9")] == 1


def test_a_fresh_model_shows_its_failures_as_zero() -> None:
    """An alert on an increase needs a first value to increase from."""
    metrics = Metrics()
    metrics.of("example")
    assert page(metrics)["evergreen_log_failures_total", ("example",)] == 0
