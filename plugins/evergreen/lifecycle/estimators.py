"""From a declaration to an unfitted estimator: a function of the model's folder, or a class.

``training:build`` names a function in the model's own ``training.py``, which returns any
scikit-learn estimator. ``sklearn.ensemble.HistGradientBoostingClassifier`` names a class, which
gets the preparation it needs: categories made numbers, and gaps filled where it can't see them.
Either takes the declared parameters by name, and the declared seed.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.modules import load_module

MAX_CATEGORIES = 64
#: Where a dotted path may lead: to import a package is to run it, and a declaration is data.
PACKAGES = ("lightgbm", "sklearn", "xgboost")
#: Further packages, separated by commas: for whoever runs the deployment, not for a declaration.
MORE_PACKAGES = "EVERGREEN_ESTIMATOR_PACKAGES"
#: What skops may build beyond its own defaults. Each was read before it came onto this list:
#: building it runs no code that the file brings. Never extended by what a file asks for.
TRUSTED_TYPES = (
    # The type of an array's items, which an imputer remembers: a name and a size.
    "numpy.dtype",
    # Arrays of tree nodes, as plain state.
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
    # How HistGradientBoosting with categorical columns checks its input: a partial call, whose
    # function must be on this list too, of a function that only validates.
    "functools.partial",
    "sklearn.utils.validation.check_array",
    # Plain holders of fitted calibrators.
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    # Optimizer state that a fitted network keeps: lists of arrays.
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    # Neighbour trees: arrays and a distance.
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.metrics._dist_metrics.MinkowskiDistance64",
    # LightGBM's wrappers; the booster is its own text format, parsed by LightGBM.
    "collections.OrderedDict",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRegressor",
    # XGBoost's wrappers; the booster is its own UBJSON format, parsed by XGBoost.
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
    "xgboost.sklearn.XGBRegressor",
    "xgboost.sklearn.XGBRFClassifier",
    "xgboost.sklearn.XGBRFRegressor",
)
#: Silence, and the same trees on every repeat, for libraries that have neither by default.
_QUIET = {
    "lightgbm": {"verbosity": -1, "deterministic": True, "force_row_wise": True},
    "xgboost": {"verbosity": 0},
}


def allowed_packages() -> tuple[str, ...]:
    """The packages whose classes a declaration may name, sorted."""
    more = (name.strip() for name in os.environ.get(MORE_PACKAGES, "").split(","))
    return tuple(sorted({*PACKAGES, *(name for name in more if name)}))


def trusted_types(declaration: Declaration | None) -> list[str]:
    """The types that skops may build for a model: the reviewed ones and the declared ones.

    :raises DeclarationError: for a declared one of a package that isn't allowed.
    """
    declared = declaration.training.trusted_types if declaration else ()
    for name in declared:
        _check_package(f"{declaration and declaration.folder / 'model.yaml'}: trusted_types", name)
    return sorted({*TRUSTED_TYPES, *declared})


def build_estimator(
    declaration: Declaration,
    features: Sequence[Feature],
    parameters: Mapping[str, Any] | None = None,
) -> Any:
    """An unfitted estimator.

    :param features: its input columns.
    :param parameters: in place of the declared ones of the same names.
    :raises DeclarationError: naming the file, attribute or parameter, what was found and what is
        allowed.
    """
    trusted_types(declaration)
    declared = {**declaration.training.parameters, **(parameters or {})}
    make, wrap = _maker(declaration)
    _check_parameters(declaration, make, declared)
    try:
        estimator = make(**declared)
    except Exception as error:  # whatever a model's own code raises, said with its place
        raise DeclarationError(
            f"{_where(declaration)} fails with {declared}: {type(error).__name__}: {error}"
        ) from error
    if wrap:
        estimator = _prepared(_quiet(estimator, declared), features)
    _check_kind(declaration, estimator)
    return _seeded(estimator, declaration.training.seed, "random_state" in declared)


def wants_indices(estimator: Any) -> bool:
    """Whether the last step only learns classes that are numbered from 0 (XGBoost)."""
    return type(_last(estimator)).__module__.startswith("xgboost")


def libraries(estimator: Any) -> tuple[str, ...]:
    """The top-level packages that a model's steps come from, sorted."""
    found = {type(estimator).__module__.partition(".")[0]}
    for value in estimator.get_params(deep=True).values():
        if hasattr(value, "get_params") and not isinstance(value, type):
            found.add(type(value).__module__.partition(".")[0])
    return tuple(sorted(found))


def _where(declaration: Declaration) -> str:
    return (
        f"{declaration.folder / 'model.yaml'}: training.estimator {declaration.training.estimator}"
    )


def _maker(declaration: Declaration) -> tuple[Callable[..., Any], bool]:
    """What makes the estimator, and whether that needs wrapping."""
    path = declaration.training.estimator
    if ":" in path:
        name, attribute = path.split(":")
        module, wrap = load_module(declaration, name), False
    else:
        _check_package(_where(declaration), path)
        name, _, attribute = path.rpartition(".")
        wrap = True
        try:
            module = import_module(name or attribute)
        except ImportError as error:
            raise DeclarationError(
                f"{_where(declaration)}: {error}. It is module:function in the model's folder, or "
                "the dotted path of an installed estimator class."
            ) from error
    found = getattr(module, attribute, None)
    if not callable(found) or (wrap and not hasattr(found, "fit")):
        kind = "estimator class" if wrap else "function"
        raise DeclarationError(
            f"{_where(declaration)}: {getattr(module, '__file__', name)} holds no {kind} {attribute}"
        )
    if wrap:  # what an allowed package has imported from elsewhere is not its own
        _check_package(_where(declaration), f"{found.__module__}.{attribute}")
    return found, wrap


def _check_package(where: str, path: str) -> None:
    """Refuse a dotted path out of the allowed packages, before anything is imported.

    :raises DeclarationError: naming them, and how a deployment allows more.
    """
    package, allowed = path.partition(".")[0], allowed_packages()
    if package not in allowed:
        raise DeclarationError(
            f"{where}: {path} is of the package {package}; allowed are {', '.join(allowed)}. Use "
            "module:function of the model's folder, or have whoever runs the deployment name the "
            f"package in {MORE_PACKAGES}."
        )


def _check_parameters(
    declaration: Declaration, make: Callable[..., Any], parameters: Mapping[str, Any]
) -> None:
    known = inspect.signature(make).parameters
    names = {name for name, p in known.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if open_ended := any(p.kind is p.VAR_KEYWORD for p in known.values()):
        package = make.__module__.partition(".")[0]
        if package not in _QUIET:  # a function that passes anything on checks for itself
            return
        names |= set(_QUIET[package]) | set(make().get_params())
    for name in sorted(set(parameters) - names):
        raise DeclarationError(
            f"{_where(declaration)} has no parameter {name}; "
            f"{'known' if open_ended else 'allowed'} are {', '.join(sorted(names)) or 'none'}"
        )


def _quiet(estimator: Any, declared: Mapping[str, Any]) -> Any:
    package = type(estimator).__module__.partition(".")[0]
    defaults = {k: v for k, v in _QUIET.get(package, {}).items() if k not in declared}
    return estimator.set_params(**defaults) if hasattr(estimator, "set_params") else estimator


def _prepared(estimator: Any, features: Sequence[Feature]) -> Any:
    """A pipeline that brings the features into the form its last step can learn from."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline, make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
    from sklearn.utils import get_tags

    if not hasattr(estimator, "fit"):
        return estimator
    numbers = [feature.name for feature in features if feature.type == "number"]
    texts = [feature.name for feature in features if feature.type == "string"]
    if get_tags(estimator).input_tags.allow_nan:
        encode: Any = OrdinalEncoder(
            handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1
        )
        scale: Any = "passthrough"
    else:
        encode = OneHotEncoder(
            handle_unknown="infrequent_if_exist", max_categories=MAX_CATEGORIES, sparse_output=False
        )
        # A feature that is missing throughout stays a column, so that one more value later fits.
        scale = make_pipeline(
            SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler()
        )
    steps = [("categories", encode, texts), ("numbers", scale, numbers)]
    columns = ColumnTransformer(
        [step for step in steps if step[2]], verbose_feature_names_out=False
    )
    return Pipeline([("columns", columns), ("estimator", estimator)])


def _check_kind(declaration: Declaration, estimator: Any) -> None:
    from sklearn.base import BaseEstimator, is_classifier, is_regressor

    classifies = declaration.task.classifies
    wanted = "classifier with predict_proba" if classifies else "regressor"
    right = isinstance(estimator, BaseEstimator) and (
        is_classifier(estimator) and hasattr(estimator, "predict_proba")
        if classifies
        else is_regressor(estimator)
    )
    if not right:
        raise DeclarationError(
            f"{_where(declaration)} makes a {type(_last(estimator)).__name__}; "
            f"{declaration.task} needs a scikit-learn {wanted}"
        )


def _seeded(estimator: Any, seed: int, declared: bool) -> Any:
    """Set every ``random_state``, however deep; with a declared one, only those left open."""
    states = {
        name: seed
        for name, value in estimator.get_params(deep=True).items()
        if name.rpartition("__")[2] == "random_state" and not (declared and value is not None)
    }
    return estimator.set_params(**states)


def _last(estimator: Any) -> Any:
    return estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
