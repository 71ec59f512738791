"""Importance: what the primary metric loses when a feature is shuffled, model by model.

L. Breiman, "Random Forests", 2001, section 10. Every model is asked for the same seeded sample,
so that what changed between two of them is not the luck of the draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.lifecycle.fitted import FittedModel, input_frame, shaped
from evergreen.lifecycle.metrics import measure

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]

SAMPLE = 2_000
REPEATS = 3


def importances(
    declaration: Declaration, models: Mapping[str, FittedModel], rows: pd.DataFrame, labels: Array
) -> dict[str, dict[str, float]]:
    """What the primary metric loses when a feature is shuffled (L. Breiman 2001), by model.

    Each model is asked for the same seeded sample of at most `SAMPLE` rows.
    """
    import numpy as np
    from sklearn.inspection import permutation_importance
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

    seed, metric = declaration.training.seed, declaration.primary
    sign = 1 if metric.greater_is_better else -1
    size = min(SAMPLE, len(rows))
    drawn = np.sort(np.random.default_rng(seed).choice(len(rows), size=size, replace=False))

    def score(estimator: Any, frame: pd.DataFrame, truth: Array) -> float:
        ask = estimator.predict_proba if declaration.task.classifies else estimator.predict
        return sign * measure(metric, declaration.task, truth, shaped(declaration.task, ask(frame)))

    found = {}
    with threadpool_limits(1):  # thousands of small answers: threads would only wait for each other
        for who, model in models.items():
            frame = input_frame(rows.iloc[drawn], model.features).reset_index(drop=True)
            lost = permutation_importance(
                model.estimator,
                frame,
                labels[drawn],
                scoring=score,
                n_repeats=REPEATS,
                random_state=seed,
            ).importances_mean
            named = zip(frame.columns, lost, strict=True)
            found[who] = {name: float(value) for name, value in named if np.isfinite(value)}
    return found


def less(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """By how much each importance changed, of features that both models have."""
    return {name: value - before[name] for name, value in now.items() if name in before}
