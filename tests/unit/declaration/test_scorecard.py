"""A person's declaration in ``ml_test_score``: 28 ids, half a point or a whole one, who and where."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from evergreen.declaration import DeclarationError, read_declaration
from evergreen.declaration.scorecard import SECTIONS, TESTS

MODEL = """\
name: churn
task: binary_classification
owner: {team: growth, contact: growth@example.com}
data:
  uri: landing/churn/{partition}.parquet
  partition: day
  entities: [customer]
  label: {column: left, delay: 30d}
training:
  estimator: sklearn.linear_model.LogisticRegression
evaluation: {primary: log_loss}
ml_test_score:
"""
GOOD = {"points": 0.5, "by": "vera", "evidence": "https://example.com/review", "on": "2026-03-01"}


def read(folder: Path, section: dict[str, object]) -> object:
    (folder / "churn").mkdir()
    file = folder / "churn" / "model.yaml"
    file.write_text(MODEL + "  " + yaml.safe_dump(section, default_flow_style=True))
    return read_declaration(file).ml_test_score


def test_there_are_seven_tests_in_each_of_four_sections() -> None:
    assert Counter(test.section for test in TESTS.values()) == dict.fromkeys(SECTIONS, 7)
    assert [test.number for test in TESTS.values()] == [*range(1, 8)] * 4
    assert len({test.title for test in TESTS.values()}) == 28


def test_a_declared_test_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, {"privacy_controls": GOOD, "debuggable": {**GOOD, "points": 1}})
    assert isinstance(found, dict)
    assert found["privacy_controls"].points == 0.5
    assert found["privacy_controls"].on.isoformat() == "2026-03-01"
    assert found["debuggable"].points == 1


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"privacy_control": GOOD}, ["privacy_control", "Did you mean privacy_controls?"]),
        ({"magic": GOOD}, ["ml_test_score", "'magic'", "feature_schema", "prediction_quality"]),
        ({"debuggable": {**GOOD, "points": 0.7}}, ["ml_test_score.debuggable.points", "0.5", "1"]),
        ({"debuggable": {**GOOD, "points": 0}}, ["ml_test_score.debuggable.points"]),
        ({"debuggable": {**GOOD, "by": " "}}, ["ml_test_score.debuggable.by"]),
        ({"debuggable": {**GOOD, "evidence": ""}}, ["ml_test_score.debuggable.evidence"]),
        ({"debuggable": {**GOOD, "on": "soon"}}, ["ml_test_score.debuggable.on", "'soon'"]),
        ({"debuggable": {**GOOD, "why": "x"}}, ["ml_test_score.debuggable", "why"]),
        (
            {"debuggable": {key: GOOD[key] for key in ("points", "by", "on")}},
            ["ml_test_score.debuggable.evidence", "missing"],
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(
    section: dict[str, object], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(DeclarationError) as caught:
        read(tmp_path, section)
    for word in words:
        assert word in str(caught.value)
