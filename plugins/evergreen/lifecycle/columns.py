"""Columns as features: a number is float64 with NaN, all else is text with None.

One rule for feature tables, request features, labels and slices, so that a value has the same
type in training, in the online store and in a request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["number", "string"]
_NUMBERS = frozenset({"boolean", "integer", "floating", "mixed-integer-float", "decimal"})
_NUMBER_TYPES = ("int", "uint", "float", "double", "halffloat", "decimal", "bool")


def kind_of_type(name: str) -> Kind:
    """What a column of an Arrow type is as a feature.

    >>> kind_of_type("bool"), kind_of_type("timestamp[us]")
    ('number', 'string')
    """
    return "number" if name.startswith(_NUMBER_TYPES) else "string"


def kind_of(values: pd.Series) -> Kind:
    """What a column's values are as a feature. A column without any value is text."""
    from pandas.api.types import infer_dtype, is_numeric_dtype

    numeric = is_numeric_dtype(values) or infer_dtype(values, skipna=True) in _NUMBERS
    return "number" if numeric else "string"


def typed(values: pd.Series, kind: Kind) -> pd.Series:
    """The values as a feature of a kind.

    :raises TypeError: for text where numbers belong.
    """
    plain, there = values.astype(object), values.notna()
    if kind == "string":
        text: pd.Series = plain.map(str, na_action="ignore").where(there, cast("Any", None))
        return text
    _require_numbers(values)
    return plain.where(there, float("nan")).astype("float64")


def keyed(values: pd.Series, kind: Kind) -> pd.Series:
    """The values as a join key: whole numbers or text; a missing one joins nothing.

    :raises TypeError: for text or fractions where whole numbers belong.
    """
    if kind == "string":
        return typed(values, "string").astype("string")
    _require_numbers(values)
    return values.astype("Int64")  # not by way of float64, which is exact only to 2**53


def of_its_kind(values: pd.Series) -> pd.Series:
    """The values as a feature of the kind that they are."""
    return typed(values, kind_of(values))


def missing(frame: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """The names that a frame doesn't have."""
    return [name for name in names if name not in frame.columns]


def _require_numbers(values: pd.Series) -> None:
    if values.notna().any() and kind_of(values) != "number":
        raise TypeError(f"column {values.name} holds {values.dtype} values that are not numbers")
