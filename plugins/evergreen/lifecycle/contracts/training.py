"""What is known of a candidate: how it was made, how it answers, how it behaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import AwareDatetime

from evergreen.lifecycle.contracts.base import Reference, Result
from evergreen.lifecycle.contracts.data import Feature


class TrainedModel(Result):
    """A candidate: a fitted model in its MLflow run.

    ``classes`` names the classes in the order of ``predict_proba``. ``predictions_digest`` is of
    the answers for the holdout's rows. Nothing in here differs between two attempts of one run.
    """

    kind = "training"
    mlflow_run: str
    model_uri: str
    experiment: str
    estimator: str
    features: tuple[Feature, ...]
    classes: tuple[str, ...] = ()
    feature_set: Reference
    snapshot: str
    predictions_digest: str
    code_digest: str
    environment_digest: str
    parameters: dict[str, Any]
    training_rows: int
    holdout_start: AwareDatetime
    trained_through: AwareDatetime
    tuned: bool = False
    refit: bool = False

    def describe(self) -> Iterator[str]:
        yield f"estimator: {self.estimator}, {'tuned' if self.tuned else 'declared'} parameters {self.parameters}"
        yield f"features {self.feature_set.digest[:12]}, code {self.code_digest[:12]}, environment {self.environment_digest[:12]}"
        refit = ", window and holdout" if self.refit else ""
        yield f"fitted on {self.training_rows:,} rows before {self.trained_through.isoformat()}{refit}"
        yield f"predictions digest: {self.predictions_digest[:12]}"
        yield f"MLflow run: {self.mlflow_run} ({self.model_uri})"


class Evaluation(Result):
    """Candidate, champion and naive baseline on the same rows.

    ``predictions`` is Parquet, one row a holdout row: ``partition``, ``row_id``, ``label`` (a
    class index or a value), ``candidate``, ``champion`` (when it could answer) and ``baseline``
    (the probability of class 1, a value, or for several classes ``candidate_0``, ``candidate_1``,
    …), and the columns of slices and fairness. ``metrics[who][metric]``;
    ``slices[column][value]`` holds ``rows``, the candidate's metrics by name, and the champion's
    as ``champion.<metric>``. ``importance`` is what the candidate's primary metric loses when a
    feature is shuffled; ``importance_change`` is that less the champion's, on the same rows.

    ``production_rows`` of the holdout's rows were answered by the champion in production: the
    table holds those answers as ``production`` (or ``production_0``, …), missing where it was not
    asked, and ``metrics`` has them as ``production``, beside ``candidate_where_production`` on the
    same rows. ``production_differs`` is the share of them that the champion answers otherwise
    anew; ``production_problem`` why recorded answers can't be read. ``realised`` is how the
    champion did on all ``realised_rows`` whose label the monitor knew of.
    """

    kind = "evaluation"
    mlflow_run: str
    holdout_digest: str
    holdout_rows: int
    champion_version: str | None
    champion_problem: str | None = None
    predictions: str
    classes: tuple[str, ...] = ()
    metrics: dict[str, dict[str, float]]
    slices: dict[str, dict[str, dict[str, float]]] = {}
    calibration: dict[str, float] = {}
    importance: dict[str, float] = {}
    importance_change: dict[str, float] = {}
    production_rows: int = 0
    production_differs: float | None = None
    production_problem: str | None = None
    production_notes: tuple[str, ...] = ()
    realised: dict[str, float] = {}
    realised_rows: int = 0

    def describe(self) -> Iterator[str]:
        yield f"holdout: {self.holdout_rows:,} rows, {self.holdout_digest[:12]}"
        for metric in self.metrics["candidate"]:
            values = (
                f"{who} {found[metric]:.4f}"
                for who, found in self.metrics.items()
                if metric in found
            )
            yield f"  {metric}: {', '.join(values)}"
        if self.champion_problem:
            yield f"champion {self.champion_version} can't score these rows: {self.champion_problem}"
        elif self.champion_version:
            yield from self._production()
        top = sorted(self.importance.items(), key=lambda item: -item[1])[:5]
        yield "importance: " + ", ".join(f"{name} {value:.4f}" for name, value in top)

    def _production(self) -> Iterator[str]:
        version = self.champion_version
        differs = (
            f"; {self.production_differs:.1%} of the answers differ from its answers anew"
            if self.production_differs is not None
            else ""
        )
        yield (
            f"production: {self.production_rows:,} of these rows were answered by champion "
            f"{version}{differs}"
        )
        if self.production_problem:
            yield f"  NOT READABLE: {self.production_problem}"
        yield from (f"  {note}" for note in self.production_notes)
        found = ", ".join(f"{name} {value:.4f}" for name, value in self.realised.items())
        yield (
            f"realised by champion {version} in production: {found or 'nothing'} on "
            f"{self.realised_rows:,} rows whose label the monitor knew of"
        )


class InfrastructureReport(Result):
    """How the logged model behaves in a clean process. Latencies in ms, memory in MB."""

    kind = "infrastructure"
    mlflow_run: str
    loads: bool
    problem: str | None = None
    signature_matches: bool = False
    same_predictions: bool = False
    latency_ms: dict[str, float] = {}
    memory_mb: float | None = None
    load_seconds: float | None = None

    def describe(self) -> Iterator[str]:
        if self.problem:
            yield f"the logged model is not usable: {self.problem}"
        yield f"signature matches: {self.signature_matches}; predictions equal the trainer's: {self.same_predictions}"
        if self.latency_ms:
            yield "latency: " + ", ".join(
                f"{name} {value:.1f} ms" for name, value in self.latency_ms.items()
            )
        if self.memory_mb is not None and self.load_seconds is not None:
            yield f"peak memory: {self.memory_mb:.0f} MB, loaded in {self.load_seconds:.1f} s"
