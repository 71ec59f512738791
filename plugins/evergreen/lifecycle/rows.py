"""Raw rows as frames: read a landed file, put its times in UTC, name what doesn't fit.

Shared by the stages that look into raw data. The row id of a raw row is its position in its
file, which never changes because files are kept by content.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import PartitionError
from evergreen.ledger import records
from evergreen.lifecycle.contracts import Partition, PartitionFile
from evergreen.lifecycle.untrusted import read_parquet

if TYPE_CHECKING:
    import pandas as pd

    from evergreen.store import Store

MAIN, LABELS = records.DATA, records.LABELS


def labels_apart(declaration: Declaration) -> bool:
    """Whether labels land in a table of their own, the source `LABELS`."""
    return declaration.data.label.uri is not None


def time_columns(declaration: Declaration, source: str) -> tuple[str, ...]:
    """The columns of a source that are times; by the first one its files are cut."""
    data = declaration.data
    apart, known = labels_apart(declaration), data.label.timestamp
    if apart and source == LABELS:
        named = [known, *(c for c in data.label.key if c == data.event_timestamp)]
    elif source != MAIN:
        named = [data.sources[source].event_timestamp]
    else:
        named = [data.event_timestamp, None if apart else known]
    return tuple(dict.fromkeys(column for column in named if column))


def required_columns(declaration: Declaration, source: str) -> tuple[str, ...]:
    """The columns without which a source's file can't be used."""
    times, data = time_columns(declaration, source), declaration.data
    if labels_apart(declaration) and source == LABELS:
        others: tuple[str, ...] = (data.label.column, *data.label.key)
    elif source != MAIN:
        others = ()
    elif labels_apart(declaration):
        others = (*data.entities, *data.label.key)
    else:
        others = (data.label.column, *data.entities)
    return tuple(dict.fromkeys((*times, *others)))


def read_file(path: Any, uri: str, columns: list[str] | None = None) -> pd.DataFrame:
    """Read Parquet or CSV from a path whose declared address is ``uri``.

    :raises PartitionError: when it isn't readable as what its ending says.
    """
    import pandas as pd

    try:
        with path.open("rb") as stream:
            if uri.endswith(".csv"):
                return pd.read_csv(stream, usecols=columns)
            return read_parquet(stream, columns)
    except (
        ValueError
    ) as error:  # ParserError, EmptyDataError and UnicodeDecodeError are ValueErrors
        kind = "CSV" if uri.endswith(".csv") else "Parquet"
        raise PartitionError(
            f"{uri} is not readable as {kind}: {error}. It may be empty or cut off; land it again whole."
        ) from error


def normalise_times(
    declaration: Declaration, source: str, frame: pd.DataFrame, uri: str
) -> pd.DataFrame:
    """Make every time column tz-aware UTC microseconds; a naive one is in the declared zone.

    :raises PartitionError: for a column whose values are not times, or naive times that
        don't exist, or exist twice, in the declared zone.
    """
    import pandas as pd

    zone = declaration.data.timezone
    for column in time_columns(declaration, source):
        values = frame[column]
        try:
            if not isinstance(values.dtype, pd.DatetimeTZDtype):
                numbers = pd.api.types.is_numeric_dtype(values) and values.notna().any()
                values = pd.to_datetime(values.map(repr) if numbers else values, format="ISO8601")
                if not isinstance(values.dtype, pd.DatetimeTZDtype):
                    values = values.dt.tz_localize(zone, ambiguous="raise", nonexistent="raise")
            frame[column] = values.dt.tz_convert("UTC").dt.as_unit("us")
        except (ValueError, TypeError) as error:
            raise PartitionError(
                f"{uri}: column {column} holds {frame[column].dtype} values that are not times "
                f"in {zone}: {error}. Land times with a zone, or as ISO text."
            ) from error
    return frame


def read_raw(
    store: Store,
    declaration: Declaration,
    file: PartitionFile,
    source: str = MAIN,
    columns: list[str] | None = None,
) -> pd.DataFrame:
    """The rows of a registered file, times in UTC, index = row id."""
    if columns is not None:
        columns = list(dict.fromkeys((*time_columns(declaration, source), *columns)))
    frame = read_file(store.path(file.stored), file.uri, columns)
    return normalise_times(declaration, source, frame, file.uri)


def label_timestamps(
    declaration: Declaration, frame: pd.DataFrame, source: str = MAIN
) -> pd.Series:
    """When each row's label becomes known; NaT where it never does.

    A row without a label value never matures, whatever its timestamp says. No row of the model's
    own table has a label where labels land in a table of their own.
    """
    import pandas as pd

    label = declaration.data.label
    if labels_apart(declaration) and source == MAIN:
        return pd.Series(pd.NaT, frame.index, dtype="datetime64[us, UTC]")
    if label.timestamp is not None:
        known = frame[label.timestamp]
    else:
        known = frame[declaration.data.event_timestamp] + (label.delay or timedelta(0))
    return known.where(frame[label.column].notna())


def main_file(partition: Partition) -> PartitionFile:
    """The file of the model's own table."""
    return partition.files[MAIN]
