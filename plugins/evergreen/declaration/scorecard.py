"""The tests of the ML Test Score, and what a person declares of one in ``ml_test_score``.

The 28 tests are those of E. Breck, S. Cai, E. Nielsen, M. Salib and D. Sculley, "The ML Test
Score: A Rubric for ML Production Readiness and Technical Debt Reduction", IEEE Big Data 2017:
four sections of seven. An id is the key in a model file and never changes its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from evergreen.declaration.types import Frozen

Section = Literal["data", "model", "infrastructure", "monitoring"]
SECTIONS: tuple[Section, ...] = get_args(Section)


@dataclass(frozen=True)
class RubricTest:
    """One test: its place in the paper, and the paper's title in short."""

    id: str
    section: Section
    number: int
    title: str


_TITLES: dict[Section, dict[str, str]] = {
    "data": {
        "feature_schema": "Feature expectations are captured in a schema",
        "features_beneficial": "All features are beneficial",
        "feature_cost": "No feature's cost is too much",
        "feature_requirements": "Features adhere to meta-level requirements",
        "privacy_controls": "The data pipeline has appropriate privacy controls",
        "new_features_quickly": "New features can be added quickly",
        "feature_code_tested": "All input feature code is tested",
    },
    "model": {
        "specs_reviewed": "Model specs are reviewed and submitted",
        "metrics_correlate": "Offline and online metrics correlate",
        "hyperparameters_tuned": "All hyperparameters have been tuned",
        "staleness_known": "The impact of model staleness is known",
        "simpler_not_better": "A simpler model is not better",
        "quality_on_slices": "Model quality is sufficient on important data slices",
        "inclusion": "The model is tested for considerations of inclusion",
    },
    "infrastructure": {
        "reproducible": "Training is reproducible",
        "specs_tested": "Model specs are unit tested",
        "pipeline_tested": "The ML pipeline is integration tested",
        "validated_before_serving": "Model quality is validated before serving",
        "debuggable": "The model is debuggable",
        "canaried": "Models are canaried before serving",
        "rolled_back": "Serving models can be rolled back",
    },
    "monitoring": {
        "dependency_changes": "Dependency changes result in notification",
        "data_invariants": "Data invariants hold for inputs",
        "not_skewed": "Training and serving are not skewed",
        "not_stale": "Models are not too stale",
        "numerically_stable": "Models are numerically stable",
        "computing_performance": "Computing performance has not regressed",
        "prediction_quality": "Prediction quality has not regressed",
    },
}

#: Every test by its id, in the paper's order.
TESTS: dict[str, RubricTest] = {
    name: RubricTest(name, section, number, title)
    for section, titles in _TITLES.items()
    for number, (name, title) in enumerate(titles.items(), start=1)
}


def _known(value: str) -> str:
    """An id of the rubric.

    :raises ValueError: for anything else; names the allowed ones.
    """
    if value not in TESTS:
        near = get_close_matches(value, TESTS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"not a test of the rubric.{hint} Allowed: {', '.join(TESTS)}")
    return value


def _half_or_whole(value: float) -> float:
    if value not in {0.5, 1.0}:
        raise ValueError(
            "a test is worth 0.5 (done by hand, its result written down and passed on) or 1 (runs "
            "by itself, regularly)"
        )
    return value


TestId = Annotated[str, AfterValidator(_known)]


class DeclaredTest(Frozen):
    """A test that Evergreen can't see: who answers for it, since when, and where it can be read."""

    points: Annotated[float, AfterValidator(_half_or_whole)]
    by: str = Field(min_length=1, max_length=200)
    evidence: str = Field(min_length=1, max_length=2000)
    on: date
