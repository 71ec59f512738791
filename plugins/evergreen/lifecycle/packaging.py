"""What a logged model carries so that a server can run it, and nothing that it can't trust.

Its signature, the exact versions it needs, the types that skops may build for it, and a digest
of the environment it was made in.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from evergreen.declaration import Declaration
from evergreen.errors import TrainingError
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.estimators import libraries, trusted_types
from evergreen.lifecycle.fitted import METADATA, FittedModel
from evergreen.store import digest_of

_SERVING = ("mlflow", "numpy", "pandas", "scikit-learn", "scipy", "skops")


def package(declaration: Declaration, model: FittedModel) -> dict[str, Any]:
    """The arguments of `mlflow.sklearn.save_model` for a model.

    :raises TrainingError: when it holds a type that isn't trusted or that a server can't import.
    """
    types = needed_types(declaration, model.estimator)
    return {
        "metadata": {METADATA: {"task": str(model.task), "classes": list(model.classes)}},
        "signature": signature(model.features, classifies=model.task.classifies),
        "pip_requirements": requirements(model.estimator),
        "pyfunc_predict_fn": "predict_proba" if model.task.classifies else "predict",
        "serialization_format": "skops",
        "skops_trusted_types": types,
    }


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
