"""Check a declared model as far as it can be without data: modules, suite, estimator, KPI."""

from __future__ import annotations

from evergreen.declaration import Declaration


def check_model(declaration: Declaration) -> None:
    """Import what the declaration names and build its estimator.

    :raises DeclarationError: naming the file, what was found and what is allowed.
    """
    from evergreen.lifecycle.contracts import Feature
    from evergreen.lifecycle.definition_reading import load
    from evergreen.lifecycle.estimators import build_estimator
    from evergreen.lifecycle.expectations import build_suite, read_suite
    from evergreen.lifecycle.metrics import own_function
    from evergreen.placing import check_executors

    check_executors(declaration)
    if declaration.features is not None:
        load(declaration, {})
    suite = read_suite(declaration)
    if suite is not None:
        build_suite(suite)
    build_estimator(declaration, (Feature(name="x", type="number"),))
    if declaration.evaluation.kpi is not None:
        own_function(declaration.metric(declaration.evaluation.kpi.name))
