"""A version's origin as a drawing: one box a step, with what it holds and what it hashes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evergreen.ledger.tables import PromotionRow
from evergreen.lifecycle.contracts import FeatureSet, Snapshot, TrainedModel

FEW = 4  # partitions that are named one by one


@dataclass(frozen=True)
class Step:
    """One box.

    :ivar lines: what it holds.
    :ivar digest: what it hashes to; None where nothing is known.
    """

    title: str
    lines: tuple[str, ...]
    digest: str | None


def steps(
    live: PromotionRow,
    *,
    snapshot: Snapshot | None,
    features: FeatureSet | None,
    trained: TrainedModel | None,
    events: Mapping[str, Mapping[str, Any]],
) -> list[list[Step]]:
    """Columns of boxes, from the data to what is served."""
    return [
        _partitions(snapshot),
        [_snapshot(live, snapshot)],
        [_features(features)],
        [_run(live, trained)],
        [Step(f"version {live.version}", (live.model_uri, f"by {live.kind}"), _code(trained))],
        [_deployment(events)],
    ]


def _partitions(snapshot: Snapshot | None) -> list[Step]:
    if snapshot is None:
        return [Step("data partitions", ("the snapshot can't be read",), None)]
    every = snapshot.partitions
    shown = every if len(every) <= FEW else (*every[:1], *every[1 - FEW :])
    boxes = [
        Step(
            f"partition {part.key}",
            (f"{part.rows:,} rows", f"revision {part.revision}"),
            part.digest,
        )
        for part in shown
    ]
    if len(shown) < len(every):
        boxes.insert(1, Step(f"{len(every) - len(shown)} more partitions", (), None))
    return boxes


def _snapshot(live: PromotionRow, snapshot: Snapshot | None) -> Step:
    if snapshot is None:
        return Step("snapshot", ("can't be read",), live.snapshot_digest or None)
    window = f"{snapshot.start:%Y-%m-%d} to {snapshot.end:%Y-%m-%d}"
    rows = f"{snapshot.rows:,} rows, {snapshot.matured:,} labelled"
    return Step("snapshot", (window, rows), live.snapshot_digest)


def _features(features: FeatureSet | None) -> Step:
    if features is None:
        return Step("features", ("can't be read",), None)
    holdout = f"{features.training_rows:,} to train, {features.holdout_rows:,} held out"
    return Step(
        "features", (f"{len(features.features)} features", holdout), features.digest_of_rows
    )


def _run(live: PromotionRow, trained: TrainedModel | None) -> Step:
    told = (f"MLflow run {live.mlflow_run[:12]}",)
    if trained is None:
        return Step("training run", (*told, "its record can't be read"), None)
    return Step("training run", (*told, trained.estimator), trained.environment_digest)


def _code(trained: TrainedModel | None) -> str | None:
    return trained.code_digest if trained else None


def _deployment(events: Mapping[str, Mapping[str, Any]]) -> Step:
    far = [event for event in ("aliased", "materialized", "served", "completed", "verified")
           if event in events]  # fmt: skip
    return Step("deployment", tuple(far) or ("not begun",), None)
