"""Pictures of an evaluation: which there are, and that nothing written on them is cut off."""

from __future__ import annotations

import numpy as np
import pytest

from evergreen.declaration import Task
from evergreen.lifecycle.plots import figures

_RNG = np.random.default_rng(7)
_ROWS = 400


def _answers(low: float, high: float) -> dict[str, np.ndarray]:
    return {who: _RNG.uniform(low, high, _ROWS) for who in ("candidate", "champion", "baseline")}


def _classes() -> dict[str, np.ndarray]:
    return {who: _RNG.dirichlet((1, 1, 1), _ROWS) for who in ("candidate", "baseline")}


@pytest.mark.parametrize(
    ("task", "labels", "answers", "names"),
    [
        (Task.BINARY, _RNG.integers(0, 2, _ROWS), _answers(0, 1), ["calibration", "curves"]),
        (Task.BINARY, np.zeros(_ROWS), _answers(0, 1), ["calibration"]),
        (Task.MULTICLASS, _RNG.integers(0, 3, _ROWS), _classes(), ["calibration"]),
        (
            Task.REGRESSION,
            _RNG.uniform(-900_000, 900_000, _ROWS),
            _answers(-900_000, 900_000),
            ["calibration", "residuals"],
        ),
    ],
    ids=["binary", "one class", "multiclass", "regression"],
)
@pytest.mark.parametrize(
    "features",
    [["a"], ["scheduled_departure_hour_of_the_previous_leg"], ["MAXIMUM_GUST_OF_WIND_MMHG"], []],
    ids=["short", "long", "capitals", "none"],
)
def test_all_that_is_written_is_within_the_picture(
    task: Task,
    labels: np.ndarray,
    answers: dict[str, np.ndarray],
    names: list[str],
    features: list[str],
) -> None:
    importance = {name: 0.1 * place for place, name in enumerate(features)}
    made = dict(figures(task, labels, answers, importance))
    assert list(made) == [*names, "importance"]
    for name, figure in made.items():
        figure.canvas.draw()
        written, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        for axes in figure.axes:
            assert axes.get_position().width > 0.3 / len(figure.axes), name
        assert written.x0 >= 0, name
        assert written.y0 >= 0, name
        assert written.x1 <= width, name
        assert written.y1 <= height, name
