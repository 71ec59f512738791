"""What replicas answered, as lines of a segment and as a table like batch scoring's log.

A segment holds a JSON line for each answered row; the table has a column for each entity, feature
and slice, of a type that doesn't depend on the values: a number is float64, an entity that is a
number is int64, all else is text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from evergreen.declaration import Declaration, Task
from evergreen.errors import CorruptError, DeclarationError
from evergreen.ledger import records
from evergreen.ledger.tables import PartitionRow, PromotionRow
from evergreen.lifecycle.columns import kind_of_type
from evergreen.lifecycle.contracts import Feature, FeatureSet, Origin, Partition
from evergreen.lifecycle.rows import main_file
from evergreen.store import Store
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

    Kinds = Mapping[str, str]

#: What the log says of each answer after the answer itself, in the order of its columns.
SAID = {
    "model_version": "string",
    "request_id": "string",
    "request_row": "integer",
    "served_at": "time",
    "replica": "string",
    "route": "string",
    "role": "string",
    "fallback": "string",
    "feature_age": "number",
    "online": "string",
}
PREDICTION = re.compile(r"prediction(_(\d+))?")


def segment_name(model: str, segment: str) -> str:
    """A segment's name below the store's root."""
    return f"served/{model}/segments/{segment}.jsonl"


@dataclass(frozen=True)
class Piece:
    """A segment, its digest and bytes, its lines, and whether its last one was torn."""

    segment: str
    digest: str
    size: int
    lines: list[Any]
    torn: bool


def read_segment(declaration: Declaration, segment: str, content: bytes) -> Piece:
    """A segment's lines, checked.

    :raises CorruptError: naming the line, counted from 1.
    """
    import msgspec

    *whole, torn = content.split(b"\n")
    decode, lines = _decoder(), []
    listed = declaration.task is Task.MULTICLASS
    for number, text in enumerate(whole, start=1):
        try:
            line = decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _unreadable(declaration, segment, number, str(error)) from error
        if isinstance(line.prediction, list) is not listed:
            found = f"it answers {line.prediction!r} to {declaration.task}"
            raise _unreadable(declaration, segment, number, found)
        lines.append(line)
    digest = hashlib.sha256(content).hexdigest()
    return Piece(segment, digest, len(content), lines, bool(torn))


def _unreadable(declaration: Declaration, segment: str, line: int, reason: str) -> CorruptError:
    name = segment_name(declaration.name, segment)
    return CorruptError(
        f"{name}: line {line} is no answer of a replica: {reason}. Only its last line may be "
        "unfinished. Restore it from a backup, or move it away to go on without its answers."
    )


@cache
def _decoder() -> Any:
    """What reads a line as `evergreen.serving` writes it; other fields are passed over."""
    from datetime import datetime
    from typing import Annotated

    import msgspec

    time = Annotated[datetime, msgspec.Meta(tz=True)]
    values = dict[str, str | int | float | bool | None]
    fields: list[Any] = [
        ("request_id", str),
        ("request_row", int),
        ("served_at", time),
        ("replica", str),
        ("route", str),
        ("role", str),
        ("model_version", str),
        ("event_timestamp", time),
        ("entities", values),
        ("features", values),
        ("prediction", float | list[float]),
        ("online", list[str], []),
        ("slices", values, {}),
        ("fallback", str | None, None),
        ("feature_age", float | None, None),
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Line", fields, gc=False)).decode


def kinds_of(declaration: Declaration, workspace: Workspace, versions: Iterable[str]) -> Kinds:
    """What columns hold, so that it doesn't depend on the values that were answered.

    As the versions learnt them, the newest promotion first; else as the newest raw partition has
    them. Nothing is said of a column that only a version knows that was never promoted.
    """
    model, kinds = declaration.name, dict[str, str]()
    with workspace.ledger.read() as session:
        newest = select(PartitionRow).where(
            PartitionRow.model == model, PartitionRow.source == records.DATA
        )
        raw = session.scalar(newest.order_by(PartitionRow.id.desc()).limit(1))
        found = [records.promotion_of_version(session, model, version) for version in versions]
    if raw is not None:
        columns = main_file(Partition.from_row(raw)).columns
        kinds = {name: str(kind_of_type(kind)) for name, kind in columns.items()}
    for row in sorted((row for row in found if row is not None), key=lambda row: row.position):
        kinds |= {f.name: str(f.type) for f in learnt_features(workspace.store, row)}
    return kinds


def learnt_features(store: Store, promotion: PromotionRow) -> tuple[Feature, ...]:
    """The features that a promoted version learnt from, as far as the ledger says."""
    if not promotion.origin:
        return ()
    return FeatureSet.load(store, Origin.model_validate(promotion.origin).features).features


def _groups_of(declaration: Declaration) -> list[str]:
    """The columns beside features by which answers are looked at in parts."""
    return [*declaration.evaluation.slices, *(rule.column for rule in declaration.gate.fairness)]


def table_of(
    declaration: Declaration, lines: Sequence[Any], kinds: Kinds, known: Iterable[str] = ()
) -> pd.DataFrame:
    """The log's columns as batch scoring orders them, then what is said of the answers.

    :param known: features that the table has even when no line does.
    """
    import pandas as pd

    entities = declaration.data.entities
    orders = dict.fromkeys([tuple(known), *(tuple(line.features) for line in lines)])
    features = dict.fromkeys(name for order in orders for name in order)
    named = dict.fromkeys([*entities, *features, *_groups_of(declaration)])
    _refuse_clashes(declaration, named)
    columns = {
        "row_id": _column([None] * len(lines), "integer"),  # no raw row is known of a request
        "event_timestamp": _column([line.event_timestamp for line in lines], "time"),
    }
    for name in named:
        values = _values(lines, name)
        kind = kinds.get(name) or _kind_of(values)
        whole = kind == "number" and name in entities and name not in features
        columns[name] = _column(values, "integer" if whole else kind)
    columns |= _answers(declaration, lines)
    for name, kind in SAID.items():
        said = [getattr(line, name) for line in lines]
        columns[name] = _column(list(map(",".join, said)) if name == "online" else said, kind)
    return pd.DataFrame(columns)


def _refuse_clashes(declaration: Declaration, names: Iterable[str]) -> None:
    own = {"row_id", "event_timestamp", *SAID}
    if clash := [name for name in names if name in own or PREDICTION.fullmatch(name)]:
        raise DeclarationError(
            f"{declaration.name}: the prediction log can't hold a column named {', '.join(clash)}, "
            f"for it has its own. Allowed are names but {', '.join(sorted(own))} and prediction_0 "
            "and so on: rename the feature, entity or slice."
        )


def _answers(declaration: Declaration, lines: Sequence[Any]) -> dict[str, pd.Series]:
    if declaration.task is not Task.MULTICLASS:
        return {"prediction": _column([line.prediction for line in lines], "number")}
    classes = max((len(line.prediction) for line in lines), default=0)
    return {
        f"prediction_{k}": _column(
            [line.prediction[k] if k < len(line.prediction) else None for line in lines], "number"
        )
        for k in range(classes)
    }


def _values(lines: Sequence[Any], name: str) -> list[Any]:
    try:  # of a feature that all of them have, in a third of the time
        return [line.features[name] for line in lines]
    except KeyError:
        return [
            line.features.get(name, line.slices.get(name, line.entities.get(name)))
            for line in lines
        ]


def _kind_of(values: Sequence[Any]) -> str:
    """What values are of which nothing is declared; text when there is none."""
    return "number" if (types := _types(values)) and str not in types else "string"


def _types(values: Iterable[Any]) -> set[type]:
    return set(map(type, values)) - {type(None)}


def _column(values: Sequence[Any], kind: str) -> pd.Series:
    """Values as a column of a kind; as text when they can't be of it."""
    import numpy as np
    import pandas as pd

    if kind == "time":
        plain = [value.astimezone(UTC).replace(tzinfo=None) for value in values]
        return pd.Series(pd.DatetimeIndex(np.array(plain, "datetime64[us]"), tz=UTC))
    if kind == "number" and str not in _types(values):
        return pd.Series(values, dtype="float64")
    if kind == "integer" and all(value is None or _is_whole(value) for value in values):
        return pd.Series([None if v is None else int(v) for v in values], dtype="Int64")
    text = [None if value is None else str(value) for value in values]
    return pd.Series(text, dtype="object")


def _is_whole(value: Any) -> bool:
    return not isinstance(value, str) and value == int(value) and abs(value) < 2**63
