"""A request's rows as columns, and what their values may be: a number is a number, text is text.

Rows stay in the columns they came in until a version asks for its features, because which
columns count, and of what type, is the version's to say. Rows are counted from 0.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from evergreen.lifecycle.contracts import Feature
from evergreen.serving.refusals import LARGEST_INTEGER, bad, kind, said

Scalar = str | int | float | bool | None

ABSENT: Any = object()
"""What a record says of a column that it doesn't have."""
#: A number as JSON and spreadsheets write it; Python's own reader would take ``1_000`` and ``nan``.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LARGEST_FLOAT = int(sys.float_info.max)
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as they were sent: by record, by column, or by position.

    :ivar text: everything is text, of which an empty one is a missing value (CSV).
    """

    rows: int
    records: Sequence[Mapping[str, Any]] | None = None
    columns: Mapping[str, Sequence[Any]] | None = None
    positions: Sequence[Sequence[Any]] | None = None
    text: bool = False

    def column(self, name: str) -> Sequence[Any] | None:
        """A column's values, `ABSENT` where a record has none; None when there is no such column."""
        if self.records is not None:
            found = [record.get(name, ABSENT) for record in self.records]
            return None if all(value is ABSENT for value in found) else found
        return None if self.columns is None else self.columns.get(name)

    def named(self, features: Sequence[Feature]) -> Table:
        """The same with columns that have names, where they only had positions.

        :raises RequestError: when a row is longer or shorter than the features.
        """
        if self.positions is None:
            return self
        names = [feature.name for feature in features]
        return Table(self.rows, columns=by_column(names, self.positions))


def values_of(table: Table, features: Sequence[Feature]) -> dict[str, list[Any]]:
    """The features' values, column → float or None, or text or None for each row.

    :raises RequestError: naming a column that is absent, or a value of another type.
    """
    return {
        feature.name: (_numbers if feature.type == "number" else _texts)(
            feature.name,
            present(feature.name, table.column(feature.name), "the model needs it"),
            text=table.text,
        )
        for feature in features
    }


def by_column(names: Sequence[Any], rows: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """Rows of lists as columns.

    :raises RequestError: for a name that is no text or comes twice, and a row of another length.
    """
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str):
            raise bad("malformed", f"a column's name is {kind(name)}; it is text")
        if name in seen:
            raise bad("malformed", "the column is named twice", column=name[:60])
        seen.add(name)
    for row, values in enumerate(rows):
        if not is_list(values):
            raise bad("malformed", f"the row is {kind(values)}; it is a list", row=row)
        if len(values) != len(names):
            reason = f"the row holds {len(values):,} values; there are {len(names):,} columns"
            raise bad("malformed", reason, row=row)
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def present(name: str, found: Sequence[Any] | None, why: str) -> Sequence[Any]:
    """A column that must be there, in every row.

    :raises RequestError: naming the column, and the row when only some have it.
    """
    if found is None:
        raise bad("missing_column", f"the column is absent; {why} (null when unknown)", name)
    for row, value in enumerate(found):
        if value is ABSENT:
            reason = f"the row has no such column; {why} (null when unknown)"
            raise bad("missing_column", reason, name, row)
    return found


def check_key(key: Feature, found: Sequence[Any]) -> None:
    """Null is allowed: what becomes of it is the model's fallback's to say."""
    for row, value in enumerate(found):
        fits = type(value) is str if key.type == "string" else _is_whole(value)
        if value is not None and not fits:
            allowed = "text" if key.type == "string" else "whole number of 64 bits"
            raise bad("wrong_type", f"{said(value)} is no {allowed}", key.name, row)


def _numbers(name: str, found: Sequence[Any], *, text: bool) -> list[float | None]:
    values: list[float | None] = []
    for row, value in enumerate(found):
        number = _number_in(value) if text else value
        if type(number) is int:
            number = _whole(number)
        if number is not None and (type(number) is not float or not math.isfinite(number)):
            code = "not_finite" if type(number) is float else "wrong_type"
            raise bad(code, f"{said(value)} is no finite number; null is allowed", name, row)
        values.append(number)
    return values


def _number_in(text: str) -> float | str | None:
    """The number that a CSV field says; the text itself when it says none."""
    plain = text.strip()
    return None if not plain else float(plain) if _NUMBER.fullmatch(plain) else text


def _whole(value: int) -> float:
    """An integer as a float; one a little above all floats isn't rounded down to the largest."""
    return float(value) if abs(value) <= _LARGEST_FLOAT else math.inf


def _texts(name: str, found: Sequence[Any], *, text: bool) -> list[str | None]:
    for row, value in enumerate(found):
        if value is not None and type(value) is not str:
            raise bad("wrong_type", f"{said(value)} is no text; null is allowed", name, row)
    return [value or None for value in found] if text else list(found)


def scalars(table: Table, names: Sequence[str]) -> dict[str, Sequence[Scalar]]:
    """The columns that are there; None in the rows that don't say."""
    columns: dict[str, Sequence[Scalar]] = {}
    for name in names:
        if (found := table.column(name)) is None:
            continue
        for row, value in enumerate(found):
            if value is not None and value is not ABSENT and not _is_key(value):
                reason = f"{said(value)} is no key; text, a number of 64 bits or null is"
                raise bad("wrong_type", reason, name, row)
        blank = (ABSENT, "") if table.text else (ABSENT,)
        columns[name] = [None if value in blank else value for value in found]
    return columns


def _is_key(value: Any) -> bool:
    """Text, or a number that 64 bits hold: what the log and the online store can keep."""
    return type(value) is str or (type(value) is float and _is_small(value)) or _is_whole(value)


def _is_whole(value: Any) -> bool:
    return type(value) is int and _is_small(value)


def _is_small(number: float) -> bool:
    return -LARGEST_INTEGER <= number < LARGEST_INTEGER


def moments(name: str, table: Table) -> list[datetime | None]:
    """The rows' own moments, in UTC; None where a row doesn't say.

    :raises RequestError: for one that is no RFC 3339 moment with a zone.
    """
    found = table.column(name)
    if found is None:
        return [None] * table.rows
    return [_moment(name, row, value) for row, value in enumerate(found)]


def _moment(name: str, row: int, value: Any) -> datetime | None:
    if value is None or value is ABSENT or value == "":
        return None
    try:
        return msgspec.convert(value, type=_Moment).astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        reason = f"{said(value)} is no moment with a zone, like 2013-07-01T12:00:00Z"
        raise bad("wrong_type", reason, name, row) from None


def is_list(value: Any) -> bool:
    """Whether JSON calls it a list."""
    return isinstance(value, list)
