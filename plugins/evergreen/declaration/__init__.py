"""The declaration of a model: frozen objects, and how they are read from ``model.yaml``."""

from evergreen.declaration.metrics import METRICS, Metric, Task
from evergreen.declaration.reading import FILE_NAME, declared_models, model_files, read_declaration
from evergreen.declaration.schema import Declaration
from evergreen.declaration.types import Frozen, Period, format_duration, parse_duration
from evergreen.errors import DeclarationError

__all__ = [
    "FILE_NAME",
    "METRICS",
    "Declaration",
    "DeclarationError",
    "Frozen",
    "Metric",
    "Period",
    "Task",
    "declared_models",
    "format_duration",
    "model_files",
    "parse_duration",
    "read_declaration",
]
