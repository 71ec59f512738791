"""The section on features and data, as far as Evergreen sees it."""

from __future__ import annotations

from evergreen.rubric.known import Judged, Known
from evergreen.rubric.people import declare

_NAMED = 5  # columns that a line names


def feature_schema(known: Known) -> Judged:
    """A suite says what is expected, and a live version's data was held against it."""
    used = known.passed("data usable")
    if isinstance(known.suite, str):
        return Judged(
            0.0, known.suite, "mend the file of `validation.suite`: run `evergreen check`"
        )
    if known.suite and used:
        return Judged(1.0, f"{known.suite} expectations; the live version's data met them")
    if known.suite:
        return Judged(
            0.5,
            f"{known.suite} expectations, but no live version's verdict shows them used",
            f"let a version go live: `evergreen retrain {known.declaration.name}`",
        )
    if used and known.declaration.features is not None:
        return Judged(
            0.5,
            "no expectation is declared; types are in the feature module, and structure was checked",
            "declare `validation.suite`, a file with an expectation for each column that matters",
        )
    return Judged(
        0.0,
        "no expectation is declared",
        "declare `validation.suite`, a file with an expectation for each column that matters",
    )


def features_beneficial(known: Known) -> Judged:
    """What the metric loses when each feature is shuffled, as drift is weighed by."""
    found = known.drift
    weights = {
        column["column"]: float(column.get("importance") or 0.0)
        for column in (found.columns if found else ())
    }
    if found is None or not any(weights.values()):
        return Judged(
            0.0,
            "no importance of any feature is known: drift was not judged yet",
            f"let `{known.declaration.name}.monitor` judge a window of the live version",
        )
    idle = sorted(name for name, weight in weights.items() if weight <= 0)
    told = f"of {len(weights)} features watched, {len(weights) - len(idle)} lose something when shuffled"
    if not idle:
        return Judged(1.0, f"{told} (version {found.version})")
    named = ", ".join(idle[:_NAMED]) + (f" and {len(idle) - _NAMED} more" if idle[_NAMED:] else "")
    return Judged(
        0.5,
        f"{told}; {named} don't (version {found.version})",
        f"drop {named} from the feature service, or say why they stay: "
        f"{declare('features_beneficial')}",
    )


TESTS = {"feature_schema": feature_schema, "features_beneficial": features_beneficial}
