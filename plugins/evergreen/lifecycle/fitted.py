"""A fitted model and how it is asked: declared features in, predictions out, alike everywhere.

The trainer, the evaluation, the clean process and the scorer ask a model through this file, so
that what they compare was asked for in one way. Predictions have the shapes that
`evergreen.lifecycle.metrics` describes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration, Task
from evergreen.errors import TrainingError
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.modelfiles import check_files
from evergreen.lifecycle.registry import checked_folder, logged_metadata, read_estimator
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]

#: Kept bits of a prediction's mantissa: enough to tell models apart (six digits), too few for
#: the order in which threads add up their trees to show.
_BITS = 20
METADATA = "evergreen"


@dataclass(frozen=True)
class FittedModel:
    """An estimator that answers.

    :ivar estimator: fitted, of scikit-learn's kind.
    :ivar task: what its answers are.
    :ivar features: its input columns, in order.
    :ivar classes: the names of its classes in the order of ``predict_proba``; none for regression.
    """

    estimator: Any
    task: Task
    features: tuple[Feature, ...]
    classes: tuple[str, ...] = ()

    def predict(self, rows: pd.DataFrame) -> Array:
        """Predictions for ``rows``, float64.

        :raises KeyError: when a feature's column is missing.
        """
        frame = input_frame(rows, self.features)
        return shaped(
            self.task,
            self.estimator.predict_proba(frame)
            if self.task.classifies
            else self.estimator.predict(frame),
        )


def input_frame(rows: pd.DataFrame, features: Sequence[Feature]) -> pd.DataFrame:
    """The feature columns of ``rows``, in order: float64, or text and None.

    :raises KeyError: naming the columns that are missing.
    """
    names = [feature.name for feature in features]
    if missing := [name for name in names if name not in rows.columns]:
        raise KeyError(f"no column {', '.join(missing)}")
    types = {f.name: "float64" if f.type == "number" else "object" for f in features}
    return rows[names].astype(types)


def shaped(task: Task, answers: Any) -> Array:
    """An estimator's raw answers as `evergreen.lifecycle.metrics` wants them, float64."""
    import numpy as np

    values = np.asarray(answers, dtype=np.float64)
    return np.ascontiguousarray(values[:, 1] if task is Task.BINARY else values)


def digest_of_predictions(predictions: Array) -> str:
    """The sha256 of predictions, as float64 of 20 bits of mantissa, in row order."""
    import numpy as np

    mantissa, exponent = np.frexp(predictions.astype(np.float64))
    rounded = np.ldexp(np.round(mantissa * 2**_BITS), exponent - _BITS) + 0.0
    return hashlib.sha256(np.ascontiguousarray(rounded).tobytes()).hexdigest()


def class_values(labels: pd.Series) -> list[Any]:
    """The sorted values of a label column; whole floats, which missing values make of integers,
    are integers again.

    :raises TrainingError: for values that have no order, like text beside numbers.
    """
    try:
        return sorted({_plain(value) for value in labels.dropna().unique()})
    except TypeError as error:
        raise TrainingError(
            f"the labels are of several types ({error}); make them numbers or text throughout"
        ) from error


def class_indices(labels: pd.Series, classes: Sequence[Any]) -> Array:
    """Each label's place among ``classes`` (values or their names), shape (n,).

    :raises TrainingError: for a label that is none of them.
    """
    import numpy as np
    import pandas as pd

    places = {str(value): index for index, value in enumerate(classes)}
    codes, found = pd.factorize(labels)
    names = [str(_plain(value)) for value in found]
    if unknown := sorted(set(names) - set(places)):
        raise TrainingError(
            f"the holdout holds the class {unknown[0]}, which no training row has (they have "
            f"{', '.join(places)}): wait until it is in the window, or widen the window"
        )
    return np.asarray([places[name] for name in names])[codes]


def targets(task: Task, labels: pd.Series, classes: Sequence[Any]) -> Array:
    """Labels as metrics want them: class indices, or float64 values."""
    return class_indices(labels, classes) if task.classifies else labels.to_numpy("float64")


def load_fitted(workspace: Workspace, declaration: Declaration, uri: str) -> FittedModel:
    """Load a model that this deployment logged, with what was logged about its answers.

    :raises CorruptError: when its files are others than were logged.
    :raises TrainingError: as `evergreen.lifecycle.registry.load_model`.
    """
    with checked_folder(workspace, uri) as folder:
        return read_fitted(folder, declaration)


def read_fitted(folder: Path, declaration: Declaration) -> FittedModel:
    """The fitted model in a folder of its files.

    :raises TrainingError: as `evergreen.lifecycle.registry.read_estimator`.
    """
    check_files(folder)
    model = logged_metadata(folder)
    known = (model.metadata or {}).get(METADATA, {})
    return FittedModel(
        estimator=read_estimator(folder, declaration),
        task=Task(known.get("task", declaration.task)),
        features=features_of(model.signature),
        classes=tuple(known.get("classes", ())),
    )


def features_of(signature: Any) -> tuple[Feature, ...]:
    """The features that a model's MLflow signature asks for."""
    if signature is None:
        return ()
    return tuple(
        Feature(name=spec.name, type="string" if spec.type.name == "string" else "number")
        for spec in signature.inputs
    )


def plain_name(value: Any) -> str:
    """A label value's class name, as `FittedModel.classes` spells it."""
    return str(_plain(value))


def _plain(value: Any) -> Any:
    """A NumPy scalar as Python's own; a whole float as an integer."""
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value
