"""A feature matters as much as the primary metric loses without it, whichever way that runs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evergreen.declaration import Task
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.fitted import FittedModel
from evergreen.lifecycle.importance import importances, less
from tests.builders import declare


@pytest.mark.parametrize("primary", ["r2", "mean_absolute_error", "miss"])
def test_only_what_the_answer_follows_is_missed(primary: str, tmp_path: Path) -> None:
    from sklearn.linear_model import LinearRegression

    (tmp_path / "kpi.py").write_text(
        "def cost(labels, answers):\n    return -abs(labels - answers)\n"
    )
    kpi = {"name": "miss", "function": "kpi:cost", "greater_is_better": True}
    declaration = declare(tmp_path, task="regression", evaluation={"primary": primary, "kpi": kpi})
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"wind": rng.normal(size=300), "noise": rng.normal(size=300)})
    labels = rows["wind"].to_numpy() * 3
    features = tuple(Feature(name=name, type="number") for name in rows)
    fitted = LinearRegression().fit(rows, labels)
    models = {"candidate": FittedModel(fitted, Task.REGRESSION, features)}
    found = importances(declaration, models, rows, labels)
    assert found["candidate"]["wind"] > 0.5
    assert found["candidate"]["noise"] == pytest.approx(0, abs=1e-9)
    assert found == importances(declaration, models, rows, labels)


def test_what_changed_is_told_of_features_that_both_have() -> None:
    assert less({"a": 3.0, "b": 1.0}, {"a": 1.0, "c": 9.0}) == {"a": 2.0}
