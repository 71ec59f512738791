"""A version's profile is computed once, follows its origin, and says what a look at its rows says."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evergreen.declaration import Declaration, Task
from evergreen.errors import DeclarationError
from evergreen.lifecycle import profiles
from evergreen.lifecycle.categoryprofiles import CategoryProfile
from evergreen.lifecycle.contracts import Feature, FeatureSet, Origin
from evergreen.lifecycle.distances import compare_column
from evergreen.lifecycle.numberprofiles import NumberProfile
from evergreen.lifecycle.profiles import ReferenceProfile, confidence, reference_profile
from evergreen.lifecycle.textdrift import TextProfile
from evergreen.workspace import Workspace
from tests.builders import declare
from tests.feature_sets import FEATURES, example_rows
from tests.lifelike import Life
from tests.origins import store_origin

IMPORTANCE = {"wind": 0.3, "carrier": 0.1, "gust": -0.02}


def profiled(
    workspace: Workspace, rows: pd.DataFrame, declaration: Declaration | None = None, **origin: Any
) -> ReferenceProfile:
    declaration = declaration or declare(workspace.home)
    return reference_profile(declaration, workspace, store_origin(workspace, rows, **origin))


def test_it_says_what_the_training_rows_say(workspace: Workspace) -> None:
    rows = example_rows()
    found = profiled(workspace, rows, importance=IMPORTANCE)
    training = rows[rows["partition"] < "2013-01-05"]
    assert found.rows == len(training) == 480
    wind, gust, carrier = (found.columns[name] for name in ("wind", "gust", "carrier"))
    assert isinstance(wind, NumberProfile)
    assert isinstance(gust, NumberProfile)
    assert isinstance(carrier, CategoryProfile)
    assert (wind.count, wind.low, wind.high) == (
        480,
        training["wind"].min(),
        training["wind"].max(),
    )
    assert (wind.mean, wind.std) == pytest.approx(
        (training["wind"].mean(), training["wind"].std(ddof=0))
    )
    assert gust.missing == training["gust"].isna().sum()
    assert carrier.counts == training["carrier"].value_counts().to_dict()
    assert found.importance == pytest.approx({"wind": 0.75, "carrier": 0.25, "gust": 0, "delay": 0})
    assert list(found.columns) == [feature.name for feature in FEATURES]


def test_each_partition_is_profiled_alone(workspace: Workspace) -> None:
    rows = example_rows()
    found = profiled(workspace, rows)
    assert list(found.spans) == ["2013-01-01", "2013-01-02", "2013-01-03", "2013-01-04"]
    day = rows[rows["partition"] == "2013-01-02"]
    wind, carrier = (found.spans["2013-01-02"][name] for name in ("wind", "carrier"))
    assert isinstance(wind, NumberProfile)
    assert isinstance(carrier, CategoryProfile)
    assert (wind.count, wind.low, wind.high) == (120, day["wind"].min(), day["wind"].max())
    assert wind.mean == pytest.approx(day["wind"].mean())
    assert carrier.counts == day["carrier"].value_counts().to_dict()
    same = compare_column(declare(workspace.home), "wind", wind, day["wind"])
    assert same.distance < 0.03  # the grid is coarse
    assert not same.drifted


def test_neighbours_are_taken_together_where_there_are_many(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "SPANS", 3)
    found = profiled(workspace, example_rows())
    assert list(found.spans) == ["2013-01-01 to 2013-01-02", "2013-01-03", "2013-01-04"]
    assert [span["delay"].count for span in found.spans.values()] == [240, 120, 120]


@pytest.mark.parametrize(
    ("task", "target"),
    [("binary", "category"), ("multiclass", "category"), ("regression", "number")],
)
def test_labels_of_training_and_holdout_are_the_target(
    workspace: Workspace, task: str, target: str
) -> None:
    rows = example_rows(task)
    kinds = {"binary": "binary_classification", "multiclass": "multiclass_classification"}
    primary = "root_mean_squared_error" if task == "regression" else "log_loss"
    declaration = declare(
        workspace.home, task=kinds.get(task, task), evaluation={"primary": primary}
    )
    if task == "multiclass":
        rows = rows.assign(prediction_0=0.5, prediction_1=0.2, prediction_2=0.3)
    found = profiled(workspace, rows, declaration)
    assert (found.target.kind, found.target.count) == (target, len(rows))
    same = compare_column(declaration, "late", found.target, rows["label"])
    assert (same.distance, same.drifted) == (pytest.approx(0.0, abs=1e-12), False)
    if task == "multiclass":
        assert list(found.prediction) == ["prediction_0", "prediction_1", "prediction_2"]
        assert found.prediction["prediction_2"].mean == pytest.approx(0.3)
        assert found.confidence == 0.5
    else:
        assert list(found.prediction) == ["prediction"]
        assert found.prediction["prediction"].count == 120
        assert found.confidence == (None if task == "regression" else pytest.approx(0.75, abs=0.01))


def test_importance_is_uniform_where_nothing_matters(workspace: Workspace) -> None:
    for importance in ({}, {"wind": -0.1, "gust": 0.0}):
        found = profiled(workspace, example_rows(), importance=importance)
        assert found.importance == dict.fromkeys([f.name for f in FEATURES], 0.25)


def test_it_is_computed_once(workspace: Workspace) -> None:
    origin = store_origin(workspace, example_rows(), importance=IMPORTANCE)
    declaration = declare(workspace.home)
    first = reference_profile(declaration, workspace, origin)
    for part in FeatureSet.load(workspace.store, origin.features).parts:
        Path(part.uri.removeprefix("file://")).unlink()
    again = reference_profile(declaration, workspace, origin)
    assert again.digest == first.digest
    assert again.importance == first.importance
    pd.testing.assert_frame_equal(again.sample, first.sample)
    for name, profile in first.columns.items():
        kept = again.columns[name]
        for field, value in vars(profile).items():
            if field in type(profile).__dataclass_fields__:
                np.testing.assert_array_equal(getattr(kept, field), value)
    with pytest.raises(FileNotFoundError):
        reference_profile(with_sample(workspace, 600), workspace, origin)


def with_sample(workspace: Workspace, size: int, **drift: Any) -> Declaration:
    return declare(workspace.home, monitoring={"drift": {"sample": size, **drift}})


def test_it_is_the_same_however_often_it_is_computed(workspace: Workspace) -> None:
    origin, declaration = store_origin(workspace, example_rows()), declare(workspace.home)
    digest = reference_profile(declaration, workspace, origin).digest
    files = sorted((workspace.home / "store" / "tables" / "profiles").rglob("*.parquet"))
    before = [file.read_bytes() for file in files]
    assert len(files) == 2
    for file in files:
        file.unlink()
    assert reference_profile(declaration, workspace, origin).digest == digest
    assert [file.read_bytes() for file in files] == before


def test_another_version_has_another_profile(workspace: Workspace) -> None:
    one = store_origin(workspace, example_rows(seed=1), version="1")
    two = store_origin(workspace, example_rows(seed=2), version="2")
    declaration = declare(workspace.home)
    found = [reference_profile(declaration, workspace, origin) for origin in (one, two, one)]
    assert found[0].digest == found[2].digest != found[1].digest
    assert [each.columns["wind"].count for each in found] == [480] * 3
    means = [
        each.columns["wind"].mean
        for each in found
        if isinstance(each.columns["wind"], NumberProfile)
    ]
    assert means[0] == means[2] != means[1]


def test_text_is_kept_as_a_sample(workspace: Workspace) -> None:
    found = profiled(
        workspace, example_rows(per_day=200), with_sample(workspace, 500, text=["carrier"])
    )
    assert len(found.sample) == 500 < found.rows
    text = found.columns["carrier"]
    assert isinstance(text, TextProfile)
    assert text.count + text.missing == found.rows
    assert list(text.texts) == found.sample["carrier"].dropna().tolist()
    assert "carrier" not in found.spans["2013-01-01"]


def test_a_number_is_no_text(workspace: Workspace) -> None:
    with pytest.raises(DeclarationError, match=r"drift\.text names wind, which is a number"):
        profiled(workspace, example_rows(), with_sample(workspace, 500, text=["wind"]))


def test_a_column_that_was_never_there(workspace: Workspace) -> None:
    rows = example_rows().assign(wind=np.nan, carrier=None)
    features = (Feature(name="wind", type="number"), Feature(name="carrier", type="string"))
    found = profiled(workspace, rows, features=features)
    assert [(each.count, each.missing) for each in found.columns.values()] == [(0, 480)] * 2
    declaration = declare(workspace.home)
    for name, there in (("wind", [1.0] * 50), ("carrier", ["AA"] * 50)):
        now = pd.Series(there)
        assert compare_column(declaration, name, found.columns[name], now).drifted
        assert not compare_column(declaration, name, found.columns[name], rows[name]).drifted


def test_confidence_is_the_mean_of_the_highest_probability() -> None:
    assert confidence(Task.BINARY, np.array([0.1, 0.7])) == pytest.approx(0.8)
    assert confidence(Task.MULTICLASS, np.array([[0.2, 0.8], [0.6, 0.4]])) == pytest.approx(0.7)
    assert confidence(Task.REGRESSION, np.array([3.0])) is None


def test_of_a_promoted_version(tmp_path: Path) -> None:
    life = Life.begin(tmp_path)
    for day in (1, 2, 3):
        life.land(day)
    assert life.retrain("run 1").promotes
    with life.workspace.ledger.read() as session:
        from evergreen.ledger import records

        row = records.promotion_of_version(session, "example", "1")
    assert row is not None
    found = reference_profile(life.declaration, life.workspace, Origin.model_validate(row.origin))
    assert set(found.columns) == {"x", "kind"}
    assert found.importance["x"] > 0.9
    assert found.confidence is not None
    assert 0.5 < found.confidence < 1.0
    assert found.target.count == 600
