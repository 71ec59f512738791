"""Drift counts by importance; what was learned once recurs without alarm; a page shows it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.declaration import Declaration
from evergreen.lifecycle.contracts import ColumnDrift, Feature, WindowDrift
from evergreen.lifecycle.drift import detect_drift, weight
from evergreen.lifecycle.monitoring import join_labels
from evergreen.workspace import Workspace
from tests.builders import declare
from tests.feature_sets import START
from tests.lifelike import Life
from tests.origins import report_of, store_origin

DAY = 400
FEATURES = (
    Feature(name="temperature", type="number"),
    Feature(name="wind", type="number"),
    Feature(name="sky", type="string"),
)
IMPORTANCE = {"temperature": 0.6, "sky": 0.3, "wind": 0.1}


def weather(seed: int, *, warm: bool = False, rows: int = DAY, **columns: Any) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    sky = rng.choice(["snow", "cloud"] if not warm else ["sun", "cloud"], rows).astype(object)
    frame = pd.DataFrame(
        {
            "temperature": rng.normal(25 if warm else 0, 2, size=rows),
            "wind": rng.normal(size=rows),
            "sky": sky,
        }
    )
    return frame.assign(**columns)


def learned(*days: pd.DataFrame) -> pd.DataFrame:
    """Days as the rows of a feature set; the last is held out."""
    parts = []
    for k, day in enumerate(days):
        start = pd.Timestamp(START + pd.Timedelta(days=k)).as_unit("us")
        when = pd.date_range(start, periods=len(day), freq="1min", unit="us")
        parts.append(
            day.assign(
                partition=f"{start:%Y-%m-%d}",
                row_id=range(len(day)),
                event_timestamp=when,
                label_timestamp=when,
                label=np.arange(len(day)) % 2,
            )
        )
    return pd.concat(parts, ignore_index=True)


def year() -> pd.DataFrame:
    """Two winter days, two summer days, and one more to hold out."""
    return learned(*(weather(k, warm=k > 1) for k in range(5)))


def watching(workspace: Workspace, *, min_rows: int = 200, **drift: Any) -> Declaration:
    return declare(workspace.home, monitoring={"min_rows": min_rows, "drift": drift})


def found_in(
    workspace: Workspace,
    now: pd.DataFrame,
    declaration: Declaration | None = None,
    *,
    rows: pd.DataFrame | None = None,
    importance: dict[str, float] = IMPORTANCE,
    features: tuple[Feature, ...] = FEATURES,
) -> WindowDrift:
    origin = store_origin(
        workspace, year() if rows is None else rows, features=features, importance=importance
    )
    report = report_of(workspace, {"2013-02-01": now}, origin)
    (window,) = detect_drift(declaration or watching(workspace), workspace, report).windows
    return window


def test_a_season_that_was_learned_recurs_without_alarm(workspace: Workspace) -> None:
    found = found_in(workspace, weather(9, warm=True))
    assert found.share == 1.0 - 0.1
    assert found.nearest in {"2013-01-03", "2013-01-04"}
    assert found.nearest_share is not None
    assert found.nearest_share < 0.5
    assert found.violates == ()
    assert "most like 2013-01-0" in "\n".join(found.lines())


def test_without_recurrence_the_same_season_violates(workspace: Workspace) -> None:
    found = found_in(workspace, weather(9, warm=True), watching(workspace, recurring=False))
    assert (found.share, found.nearest, found.nearest_share) == (0.9, None, None)
    assert found.violates == ("inputs",)


def test_what_was_never_learned_violates(workspace: Workspace) -> None:
    # Within the learned range and its categories, but neither summer nor winter.
    spring = weather(9, warm=True, temperature=np.random.default_rng(9).normal(12, 2, size=DAY))
    found = found_in(workspace, spring)
    assert found.violates == ("inputs",)
    assert found.nearest_share is not None
    assert found.nearest_share >= 0.6
    assert found.columns[0].out_of_range == 0.0


@pytest.mark.parametrize(("numeric", "categorical"), [("ks", "chisquare"), ("psi", "psi")])
def test_recurrence_by_any_method(workspace: Workspace, numeric: str, categorical: str) -> None:
    declaration = watching(
        workspace, numeric=numeric, categorical=categorical, thresholds={"psi": 0.25}
    )
    season = found_in(workspace, weather(9, warm=True), declaration)
    assert season.share >= 0.6
    assert season.violates == ()
    spring = weather(9, warm=True, temperature=np.full(DAY, 12.0))
    assert found_in(workspace, spring, declaration).violates == ("inputs",)


def test_an_unimportant_column_raises_no_alarm(workspace: Workspace) -> None:
    rows = learned(*(weather(k) for k in range(5)))
    storm = weather(9, wind=np.random.default_rng(9).normal(8, 1, size=DAY))
    found = found_in(workspace, storm, rows=rows)
    assert [c.column for c in found.columns if c.drifted] == ["wind"]
    assert (found.share, found.violates, found.nearest) == (0.1, (), None)
    assert found_in(workspace, storm, watching(workspace, share=0.1), rows=rows).violates == (
        "inputs",
    )


def test_an_ignored_column_is_left_out(workspace: Workspace) -> None:
    hot = weather(9, temperature=90.0)
    declaration = watching(workspace, columns={"temperature": {"ignore": True}})
    rows = learned(*(weather(k) for k in range(5)))
    found = found_in(workspace, hot, declaration, rows=rows)
    assert [c.column for c in found.columns] == ["wind", "sky"]
    assert (found.share, found.violates) == (0.0, ())
    assert found_in(workspace, hot, rows=rows).violates == ("inputs",)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"temperature": np.where(np.arange(DAY) < 80, np.nan, 0.0)}, "missing in 20.0%"),
        ({"temperature": np.where(np.arange(DAY) < 80, 30.0, 0.0)}, "20.0% of rows beyond"),
        ({"sky": np.where(np.arange(DAY) < 80, "hail", "snow")}, "20.0% of rows in categories"),
    ],
)
def test_values_that_are_missing_or_new(
    workspace: Workspace, columns: dict[str, Any], reason: str
) -> None:
    thresholds = {"wasserstein": 99.0, "jensenshannon": 99.0}
    rows = learned(*(weather(k) for k in range(5)))
    found = found_in(
        workspace, weather(9, **columns), watching(workspace, thresholds=thresholds), rows=rows
    )
    (drifted,) = (c for c in found.columns if c.drifted)
    assert [drifted.column] == list(columns)
    assert len(drifted.because) == 1
    assert drifted.because[0].startswith(reason)


def test_answers_drift_too(workspace: Workspace) -> None:
    rows = year()
    sure = weather(9, prediction=np.linspace(0.9, 1.0, DAY))
    asked = watching(workspace, on=["prediction"])
    found = found_in(workspace, sure, asked, rows=rows)
    assert [c.column for c in found.prediction if c.drifted] == ["prediction"]
    assert found.violates == ("prediction",)
    assert found.confidence == pytest.approx(0.95)
    assert found.confidence_reference == pytest.approx(0.75, abs=0.01)
    only_inputs = found_in(workspace, sure, watching(workspace, on=["inputs"]), rows=rows)
    assert (only_inputs.violates, only_inputs.prediction[0].drifted) == ((), True)


def test_answers_for_several_classes(workspace: Workspace) -> None:
    several = {"prediction_0": 0.2, "prediction_1": 0.5, "prediction_2": 0.3}
    declaration = declare(
        workspace.home,
        task="multiclass_classification",
        monitoring={"drift": {"on": ["prediction"]}},
    )
    found = found_in(
        workspace,
        weather(9, **{**several, "prediction_2": 0.9}),
        declaration,
        rows=year().assign(**several),
    )
    assert [(c.column, c.drifted) for c in found.prediction] == [
        ("prediction_0", False),
        ("prediction_1", False),
        ("prediction_2", True),
    ]
    assert found.confidence == pytest.approx(0.9)
    assert "prediction" in found.violates


def test_what_can_not_be_measured_says_why(workspace: Workspace) -> None:
    few = found_in(workspace, weather(9, rows=199))
    assert few.skipped == "199 rows are fewer than monitoring.min_rows: 200"
    report = report_of(workspace, {"2013-02-01": weather(9)}, None)
    (unknown,) = detect_drift(watching(workspace), workspace, report).windows
    assert "doesn't say what version 1 learned from" in str(unknown.skipped)
    assert not unknown.violates


def test_only_fresh_windows_are_looked_at(workspace: Workspace) -> None:
    origin = store_origin(workspace, year(), features=FEATURES)
    report = report_of(workspace, {"2013-02-01": weather(1), "2013-02-02": weather(2)}, origin)
    old = report.windows[0].model_copy(update={"fresh": False})
    report = report.model_copy(update={"windows": (old, report.windows[1])})
    found = detect_drift(watching(workspace), workspace, report)
    assert [window.window for window in found.windows] == ["2013-02-02"]
    assert detect_drift(watching(workspace), workspace, report) == found
    assert "2013-02-02: 400 rows against version 1's training window" in "\n".join(found.describe())


def test_text_that_changes_is_told_apart(workspace: Workspace) -> None:
    rng = np.random.default_rng(0)

    def notes(*words: str) -> list[str]:
        return [" ".join(rng.choice([*"abcdefgh", *words], 8)) for _ in range(DAY)]

    rows = learned(*(weather(k, sky=notes("snow", "ice")) for k in range(5)))
    declaration = watching(workspace, text=["sky"])
    alike, other = (
        found_in(workspace, weather(9, sky=notes(*words)), declaration, rows=rows)
        for words in (("snow", "ice"), ("sun", "heat"))
    )
    assert [c.kind for c in alike.columns] == ["number", "number", "text"]
    same, changed = alike.columns[2], other.columns[2]
    assert (same.drifted, changed.drifted) == (False, True)
    assert 0.4 < same.distance < 0.65 < changed.distance
    assert changed.because[0].startswith("domain_classifier ROC AUC 0.")
    assert other.share == 0.3
    assert other.sampled == {"report": 400, "sky": 400}
    assert other.left_out == ("sky",)


@given(
    importance=st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda them: sum(them) > 0),
    data=st.data(),
)
def test_share_is_a_share(importance: list[float], data: Any) -> None:
    drifted = data.draw(st.lists(st.booleans(), min_size=len(importance), max_size=len(importance)))
    columns = {
        str(k): ColumnDrift(
            column=str(k),
            kind="number",
            method="psi",
            distance=1.0,
            threshold=1.0,
            drifted=it,
            importance=part / sum(importance),
        )
        for k, (part, it) in enumerate(zip(importance, drifted, strict=True))
    }
    assert 0.0 <= weight(columns) <= 1.0
    if all(drifted):
        assert weight(columns) == 1.0


def test_of_a_living_model(tmp_path: Path) -> None:
    both = {"on": ["inputs", "prediction"]}
    life = Life.begin(tmp_path, monitoring={"min_rows": 200, "drift": both})
    for day in (1, 2, 3):
        life.land(day, rows=280)
    assert life.retrain("run 1").promotes
    life.land(4, rows=280)
    life.land(5, rows=280, x=np.random.default_rng(5).normal(4, 1, size=280))
    life.score()
    report = join_labels(life.declaration, life.workspace)
    assert report is not None
    found = detect_drift(life.declaration, life.workspace, report)
    strange = found.windows[-1]
    assert (strange.window, strange.version) == ("2013-01-05", "1")
    assert set(strange.violates) == {"inputs", "prediction"}
    assert strange.report is not None
    assert life.workspace.store.exists(strange.report)
