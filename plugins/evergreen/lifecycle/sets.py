"""Tables of rows in the store: written with exact types, read back as training, holdout or all.

A part is one partition's rows with their features. Labels stand in it whenever the raw file has
them, or in the part's label table; whether a row counts is decided by who reads: matured by the
set's ``as_of``, and on which side of the holdout's start it lies. So a part never changes when
time goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from evergreen.errors import DataBlockedError
from evergreen.lifecycle.contracts import FeaturePart, FeatureSet
from evergreen.lifecycle.watched import known_labels
from evergreen.store import Store

if TYPE_CHECKING:
    import pandas as pd

Which = Literal["training", "holdout", "all"]
_NOTE = b"evergreen"
_TICK = timedelta(microseconds=1)
_LABEL = ("label_timestamp", "label")


def put_table(store: Store, name: str, table: pd.DataFrame, note: Mapping[str, Any]) -> str:
    """Write a table whose types don't depend on its values: text is text when it is all missing.

    :param note: facts about the table, kept in the file itself; see `footer`.
    :returns: the URI.
    """
    import pyarrow as pa
    from pyarrow import parquet

    text = {name for name, values in table.items() if values.dtype in (object, "string")}
    columns = {
        name: pa.array(values, type=pa.string() if name in text else None, from_pandas=True)
        for name, values in table.items()
    }
    metadata = {_NOTE: json.dumps(note, sort_keys=True).encode()}
    written = pa.table(columns).replace_schema_metadata(metadata)
    return store.write(name, lambda path: parquet.write_table(written, path))


@dataclass(frozen=True)
class Footer:
    """What a table's file says of itself: rows, the Arrow type of each column, and its note."""

    rows: int
    columns: dict[str, str]
    note: dict[str, Any]


def footer(store: Store, uri: str) -> Footer:
    """Read a table's footer only."""
    from pyarrow import parquet

    with store.reachable(), store.path(uri).open("rb") as stream:
        file = parquet.ParquetFile(stream)
        schema = file.schema_arrow
        note = json.loads((schema.metadata or {}).get(_NOTE, b"{}"))
        return Footer(file.metadata.num_rows, {f.name: str(f.type) for f in schema}, note)


def read_rows(store: Store, feature_set: FeatureSet, which: Which) -> pd.DataFrame:
    """The rows of a feature set, in the order of event time.

    :param which: ``training`` and ``holdout`` are matured rows before and after the split;
        ``all`` is every row, labelled or not.
    :returns: the columns of a part, as `FeatureSet` lists them, and ``partition``.
    :raises ValueError: for a split of a set that was prepared for scoring.
    """
    import pandas as pd

    frames = [_part(store, feature_set, part, which) for part in _reached(feature_set, which)]
    if not frames:
        raise ValueError(f"no part of the feature set {feature_set.snapshot[:12]} has {which} rows")
    rows = pd.concat(frames, ignore_index=True)
    return rows.sort_values(["event_timestamp", "partition", "row_id"], ignore_index=True)


def read_part(
    store: Store, part: FeaturePart, as_of: datetime, columns: list[str] | None = None
) -> pd.DataFrame:
    """A part's rows in the order of row ids.

    :param as_of: a label that landed in a table of its own is the one known by then; one that
        stands in the row itself is there whenever it becomes known.
    :param columns: only these; all when None.
    """
    if part.labels is None:
        return store.get_table(part.uri, columns)
    rows = store.get_table(part.uri, columns and list(dict.fromkeys(["row_id", *columns])))
    known = known_labels(store.get_table(part.labels), as_of).set_index("row_id")
    named = [column for column in _LABEL if column in rows]
    joined: pd.DataFrame = rows.drop(columns=named).join(known[named], on="row_id")
    return joined[columns] if columns else joined[rows.columns]


def _bounds(feature_set: FeatureSet, which: Which) -> tuple[datetime, datetime]:
    """From when on, and before when, rows are meant."""
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    if which == "all":
        return first, last
    if feature_set.training_end is None or feature_set.holdout_start is None:
        raise ValueError(f"a feature set prepared to {feature_set.purpose} has no {which} rows")
    return (
        (first, feature_set.training_end)
        if which == "training"
        else (feature_set.holdout_start, last)
    )


def _reached(feature_set: FeatureSet, which: Which) -> list[FeaturePart]:
    start, end = _bounds(feature_set, which)
    return [p for p in feature_set.parts if which == "all" or (p.start < end and p.end > start)]


def _part(store: Store, feature_set: FeatureSet, part: FeaturePart, which: Which) -> pd.DataFrame:
    rows = read_part(store, part, feature_set.as_of).assign(partition=part.partition)
    if which == "all":
        return rows
    start, end = _bounds(feature_set, which)
    known = rows["label"].notna() & (rows["label_timestamp"] <= feature_set.as_of)
    times = rows["event_timestamp"]
    return rows[known & (times >= start) & (times < min(end, part.end))]


@dataclass(frozen=True)
class Split:
    """Where matured rows are parted: training rows lie before ``training_end``, holdout rows from
    ``holdout_start`` on and before ``end``."""

    training_end: datetime
    holdout_start: datetime
    end: datetime
    training_rows: int
    holdout_rows: int


def split(
    store: Store,
    parts: tuple[FeaturePart, ...],
    as_of: datetime,
    *,
    length: timedelta,
    embargo: timedelta,
    skip_recent: timedelta,
) -> Split:
    """Part the matured rows; reads few columns of each part.

    The holdout is the newest ``length`` of matured rows, its older end excluded; ``skip_recent``
    leaves the newest rows out of both sides.

    :raises DataBlockedError: when no row has matured.
    """
    import pandas as pd

    columns = ["event_timestamp", "label_timestamp"]
    frames = [read_part(store, part, as_of, columns) for part in parts]
    every = pd.concat(frames, ignore_index=True)
    times = every.loc[every["label_timestamp"] <= as_of, "event_timestamp"]
    kept = times[times <= times.max() - skip_recent]
    if kept.empty:
        raise DataBlockedError(
            f"no row of {len(every):,} has a label known by {as_of.isoformat()}"
            + (f" once the newest {skip_recent} are skipped" if skip_recent else "")
        )
    newest = kept.max().to_pydatetime()
    holdout_start = newest - length + _TICK
    training_end = holdout_start - embargo
    return Split(
        training_end,
        holdout_start,
        newest + _TICK,
        int((kept < training_end).sum()),
        int((kept >= holdout_start).sum()),
    )
