"""What a request may say: bytes in, rows out in columns, or an error that names the place.

`evergreen.serving.columns` says what the columns' values may be.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import msgspec

from evergreen.declaration import Declaration
from evergreen.lifecycle.contracts import Feature
from evergreen.serving.columns import (
    Scalar,
    Table,
    by_column,
    check_key,
    is_list,
    moments,
    present,
    scalars,
)
from evergreen.serving.refusals import RequestError, bad, kind, short

Route = Literal["invocations", "predict"]

_ENVELOPES = ("dataframe_split", "dataframe_records", "instances", "inputs")


@dataclass(frozen=True)
class Expected:
    """What a model's requests may hold besides features, and how many rows.

    :ivar entities: columns that name what a row is about.
    :ivar timestamp: the column with the row's own moment.
    :ivar slices: further columns that are kept in the log.
    :ivar rows: at most so many in one request.
    """

    entities: tuple[str, ...]
    timestamp: str
    slices: tuple[str, ...]
    rows: int

    @classmethod
    def of(cls, declaration: Declaration) -> Expected:
        """As the model's file declares it."""
        data = declaration.data
        groups = [
            *declaration.evaluation.slices,
            *(rule.column for rule in declaration.gate.fairness),
        ]
        return cls(
            entities=data.entities,
            timestamp=data.event_timestamp,
            slices=tuple(c for c in dict.fromkeys(groups) if c not in data.entities),
            rows=declaration.serving.limits.rows,
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose form is right. ``moments`` are None where a row doesn't say its own."""

    route: Route
    table: Table
    moments: Sequence[datetime | None]
    entities: Mapping[str, Sequence[Scalar]] = field(default_factory=dict)
    slices: Mapping[str, Sequence[Scalar]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many answers it asks for."""
        return self.table.rows


def read_predict(body: bytes, expected: Expected, keys: Sequence[Feature] = ()) -> Asked:
    """The request ``{"rows": [{…}, …]}``.

    :param keys: the columns that features are looked up by; a number is a whole one.
    :raises RequestError: naming what is wrong, and where.
    """
    envelope = _envelope(body, ("rows",))
    table = _records("rows", envelope["rows"], expected)
    for key in keys:
        check_key(key, present(key.name, table.column(key.name), "features are looked up by it"))
    return _asked("predict", table, expected)


def read_invocations(body: bytes, expected: Expected, *, csv_text: bool = False) -> Asked:
    """A request as MLflow's and SageMaker's clients write it.

    :param csv_text: the body is CSV with a header row, not JSON.
    :raises RequestError: naming what is wrong, and where.
    """
    if csv_text:
        return _asked("invocations", _csv(body, expected), expected)
    envelope = _envelope(body, _ENVELOPES)
    ((form, content),) = envelope.items()
    if form == "dataframe_split":
        table = _split(content, expected)
    elif form == "instances" and isinstance(content, list) and content and is_list(content[0]):
        table = _positions(content, expected)
    elif form == "inputs" and isinstance(content, dict):
        table = _columns(content, expected)
    else:
        table = _records(form, content, expected)
    return _asked("invocations", table, expected)


def _asked(route: Route, table: Table, expected: Expected) -> Asked:
    return Asked(
        route=route,
        table=table,
        moments=moments(expected.timestamp, table),
        entities=scalars(table, expected.entities),
        slices=scalars(table, expected.slices),
    )


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        # msgspec says at which byte; ValueError is Python's bound on an integer's digits.
        raise bad("malformed", f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise bad("malformed", "the body is nested too deeply") from error


def _envelope(body: bytes, allowed: Sequence[str]) -> dict[str, Any]:
    """The outer object, which holds exactly one of the allowed keys."""
    found = _decode(body)
    meant = " or ".join(allowed)
    if not isinstance(found, dict):
        raise bad("malformed", f"the body is {kind(found)}; it is an object with {meant}")
    if unknown := [key for key in found if key not in allowed]:
        raise bad("unknown_key", f"{short(unknown[0])} is no key of a request; it has {meant}")
    if len(found) != 1:
        raise bad("malformed", f"the body has {len(found)} of {meant}; it has exactly one")
    return found


def _counted(rows: int, expected: Expected) -> int:
    if rows == 0:
        raise bad("no_rows", "the request holds no row")
    if rows > expected.rows:
        reason = f"the request holds {rows:,} rows; at most {expected.rows:,} are allowed"
        raise RequestError(413, "too_many_rows", reason)
    return rows


def _records(form: str, content: Any, expected: Expected) -> Table:
    if not isinstance(content, list):
        raise bad("malformed", f"{form} is {kind(content)}; it is a list of objects")
    rows = _counted(len(content), expected)
    for row, record in enumerate(content):
        if not isinstance(record, dict):
            raise bad("malformed", f"the row is {kind(record)}; it is an object", row=row)
    return Table(rows, records=content)


def _split(content: Any, expected: Expected) -> Table:
    if not isinstance(content, dict):
        raise bad("malformed", f"dataframe_split is {kind(content)}; it is an object")
    if unknown := sorted(set(content) - {"columns", "index", "data"}):
        reason = f"{short(unknown[0])} is no key of dataframe_split; it has columns, index, data"
        raise bad("unknown_key", reason)
    for key in ("columns", "data", "index"):
        if not isinstance(content.get(key, None if key != "index" else []), list):
            raise bad("malformed", f"dataframe_split needs a list of {key}")
    columns, rows = content["columns"], content["data"]
    _counted(len(rows), expected)
    return Table(len(rows), columns=by_column(columns, rows))


def _positions(content: list[Any], expected: Expected) -> Table:
    for row, values in enumerate(content):
        if not is_list(values):
            raise bad("malformed", f"the row is {kind(values)}; the first is a list", row=row)
    return Table(_counted(len(content), expected), positions=content)


def _columns(content: dict[str, Any], expected: Expected) -> Table:
    rows = None
    for name, values in content.items():
        if not isinstance(values, list):
            reason = f"the column is {kind(values)}; it is a list of values"
            raise bad("malformed", reason, column=name[:60])
        rows = len(values) if rows is None else rows
        if len(values) != rows:
            reason = f"the column holds {len(values):,} values; the first holds {rows:,}"
            raise bad("malformed", reason, column=name[:60])
    return Table(_counted(rows or 0, expected), columns=content)


def _csv(body: bytes, expected: Expected) -> Table:
    try:
        text = body.decode("utf-8-sig")
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise bad("malformed", f"the body is not CSV: {error}") from error
    if not lines:
        raise bad("malformed", "the body is empty; CSV begins with a header row")
    _counted(len(lines) - 1, expected)
    return Table(len(lines) - 1, columns=by_column(lines[0], lines[1:]), text=True)
