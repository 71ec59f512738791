"""What only a person can know: tests that Evergreen sees nothing of, and what to do for each."""

from __future__ import annotations

from collections.abc import Callable

from evergreen.rubric.known import Judged, Known

_NEXT = {
    "feature_cost": "measure what each feature costs in latency, money and upkeep, and drop those "
    "that aren't worth it",
    "feature_requirements": "check features against your rules (sources, banned columns) in CI",
    "privacy_controls": "check who can read landing, store and ledger, and what personal data the "
    "features hold",
    "new_features_quickly": "write down how long the last feature took from idea to production",
    "feature_code_tested": "test `prepare_*` of the feature module in CI",
    "specs_reviewed": "let changes of the model's folder go live through review only",
    "specs_tested": "test the estimator's function in CI: that it fits, learns, and overfits a "
    "handful of rows",
    "debuggable": "write down how to follow one row of the prediction log through features and model",
}


def by_hand(name: str) -> Callable[[Known], Judged]:
    """The test of that id: nothing is known of it."""

    def unknown(_: Known) -> Judged:
        return Judged(0.0, "Evergreen can't see this", f"{_NEXT[name]}; then {declare(name)}")

    return unknown


def declare(name: str) -> str:
    """How a person declares a test, in the words of a todo."""
    return f"declare `ml_test_score.{name}`"


TESTS = {name: by_hand(name) for name in _NEXT}
