"""The gate's paired bootstrap: 2,000 resamples beside the loop that anybody would write first.

The loop draws rows and asks scikit-learn about both models, 200 times for a few rows and less
often for many; its cost is that of one resample times the number, and so is ours where the whole
would take minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from evergreen.declaration import METRICS, Task
from tests.bench.figures import Figure

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

RESAMPLES = 2000
ROWS = (6_000, 60_000, 600_000)
#: Row · resamples that one measurement may look at.
OURS, LOOP = 12_000_000, 1_200_000


def measure() -> Iterator[Figure]:
    """Seconds for each metric and number of rows, and the ratio to the loop."""
    bootstrap("log_loss", answers(100), 10)  # imports are not what is measured
    for metric in ("log_loss", "roc_auc"):
        for rows in ROWS:
            data = answers(rows)
            whole = metric == "log_loss" or rows * RESAMPLES <= OURS
            resamples = RESAMPLES if whole else OURS // rows
            ours = bootstrap(metric, data, resamples)
            plain = loop(metric, data, min(200, max(4, LOOP // rows)))
            detail = f"{plain / ours:,.0f} × faster than a loop"
            detail += "" if whole else f"; told from {resamples} resamples"
            yield Figure(f"{metric}, {rows:,} rows", ours, "s", detail=detail)


def answers(rows: int) -> tuple[Array, Array, Array]:
    """Labels, and two models of different quality."""
    import numpy as np

    rng = np.random.default_rng(rows)
    truth = rng.normal(size=rows)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-truth))).astype(int)
    candidate, champion = (
        1 / (1 + np.exp(-truth - rng.normal(scale=scale, size=rows))) for scale in (0.3, 0.6)
    )
    return labels, candidate, champion


def bootstrap(metric: str, data: tuple[Array, Array, Array], resamples: int) -> float:
    """Seconds of ours for `RESAMPLES`."""
    from evergreen.lifecycle.bootstrap import paired_difference

    began = time.perf_counter()
    paired_difference(
        METRICS[metric], Task.BINARY, *data, resamples=resamples, confidence=0.95, seed=1
    )
    return (time.perf_counter() - began) * RESAMPLES / resamples


def loop(metric: str, data: tuple[Array, Array, Array], resamples: int) -> float:
    """Seconds of a plain loop for `RESAMPLES`."""
    import numpy as np
    from sklearn import metrics

    measured = {"log_loss": metrics.log_loss, "roc_auc": metrics.roc_auc_score}[metric]
    labels, candidate, champion = data
    rng, draws = np.random.default_rng(1), []
    began = time.perf_counter()
    for _ in range(resamples):
        rows = rng.integers(0, len(labels), len(labels))
        draws.append(
            measured(labels[rows], candidate[rows]) - measured(labels[rows], champion[rows])
        )
    np.quantile(draws, [0.025, 0.975])
    return (time.perf_counter() - began) * RESAMPLES / resamples
