"""What a logged model carries so that a server can run it, and nothing that it can't trust.

Its signature, the exact versions it needs, the types that skops may build for it, rows to warm
up on, and a digest of the environment it was made in.
"""

from __future__ import annotations

import math
import platform
import sys
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import TrainingError
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.estimators import libraries, trusted_types
from evergreen.lifecycle.fitted import METADATA, FittedModel, input_frame
from evergreen.store import digest_of

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = 5
_SERVING = ("mlflow", "numpy", "pandas", "scikit-learn", "scipy", "skops")


def package(
    declaration: Declaration, model: FittedModel, rows: pd.DataFrame | None = None
) -> dict[str, Any]:
    """The arguments of `mlflow.sklearn.save_model` for a model.

    :param rows: with its features, as it was fitted on; some are kept, see `examples`.
    :raises TrainingError: when it holds a type that isn't trusted or that a server can't import.
    """
    types = needed_types(declaration, model.estimator)
    known = {
        "task": str(model.task),
        "classes": list(model.classes),
        "examples": [] if rows is None else examples(rows, model.features),
    }
    return {
        "metadata": {METADATA: known},
        "signature": signature(model.features, classifies=model.task.classifies),
        "pip_requirements": requirements(model.estimator),
        "pyfunc_predict_fn": "predict_proba" if model.task.classifies else "predict",
        "serialization_format": "skops",
        "skops_trusted_types": types,
    }


def examples(
    rows: pd.DataFrame, features: tuple[Feature, ...]
) -> list[dict[str, float | str | None]]:
    """Up to `EXAMPLES` rows, spread evenly over ``rows``, for a server to warm up on.

    :returns: feature → number or text, None where it is missing or infinite: plain JSON. The same
        for the same rows.
    """
    import numpy as np

    places = np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).astype(int)
    chosen = input_frame(rows.iloc[places], features)
    return [
        {f.name: _plain(value) for f, value in zip(features, row, strict=True)}
        for row in chosen.itertuples(index=False, name=None)
    ]


def _plain(value: Any) -> float | str | None:
    """A value of `input_frame` as JSON knows it."""
    if isinstance(value, str):
        return str(value)
    return float(value) if isinstance(value, float) and math.isfinite(value) else None


def needed_types(declaration: Declaration, estimator: Any) -> list[str]:
    """The trusted types that an estimator's file needs beyond skops' own, sorted.

    :raises TrainingError: naming one that isn't trusted, or that no other process can import.
    """
    from skops.io import dump, get_untrusted_types

    with tempfile.TemporaryDirectory(prefix="evergreen-") as aside:
        file = Path(aside) / "model.skops"
        dump(estimator, file)
        needed = sorted(get_untrusted_types(file=file))
    own = f"evergreen_models.{declaration.name}."
    if local := [name for name in needed if name.startswith(own)]:
        raise TrainingError(
            f"{declaration.name}: the model holds {local[0].rpartition('.')[2]}, defined in "
            f"{declaration.folder}, which a server doesn't have; use an installed package's class"
        )
    if untrusted := sorted(set(needed) - set(trusted_types(declaration))):
        raise TrainingError(
            f"{declaration.name}: the model holds {', '.join(untrusted)}, which skops may not "
            "build. After reading what it does, name it in training.trusted_types of "
            f"{declaration.folder / 'model.yaml'}."
        )
    return needed


def signature(features: tuple[Feature, ...], *, classifies: bool) -> Any:
    """Numbers are double, text is string; either may be null, neither may be left out."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    columns = [ColSpec("double" if f.type == "number" else "string", f.name) for f in features]
    answers = TensorSpec(np.dtype("float64"), (-1, -1) if classifies else (-1,))
    return ModelSignature(Schema(columns), Schema([answers]))


def requirements(estimator: Any) -> list[str]:
    """What a server needs to answer with this model, each in the very version used here."""
    names = {*_SERVING, *(_distribution(package) for package in libraries(estimator))}
    return [f"{name}=={version(name)}" for name in sorted(names)]


def _distribution(package: str) -> str:
    """The distribution that a top-level package was installed from.

    :raises TrainingError: when none was.
    """
    try:
        version(package)
    except PackageNotFoundError:
        # Reading every distribution's file list takes a while: only where the name differs.
        found = ["scikit-learn"] if package == "sklearn" else packages_distributions().get(package)
        if not found:
            raise TrainingError(
                f"no installed distribution holds {package}, which the model needs; "
                "install it as a package, so that a server can do the same"
            ) from None
        return found[0]
    return package


@cache
def environment_digest() -> str:
    """A digest of Python's version and of every installed distribution's name and version."""
    folders = [Path(folder or ".") for folder in sys.path]
    found = {
        info.name.removesuffix(".dist-info").lower()
        for folder in folders
        if folder.is_dir()
        for info in folder.glob("*.dist-info")
    }
    return digest_of({"python": platform.python_version(), "installed": sorted(found)})
