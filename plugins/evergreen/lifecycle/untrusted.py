"""A landed Parquet file, read as what it may be: broken, hostile, or far larger than it looks.

Two megabytes of dictionary pages can stand for tens of gigabytes, so a file is read batch by
batch and given up when it has grown too large. Its reader raises OSError for broken pages as well
as for a store that is away; only the second is worth a retry.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: Bytes of a file's columns in memory, its columns, levels of lists and structs in one of them.
EXPANDED, COLUMNS, LEVELS = 16 << 30, 10_000, 8
#: Bytes of a footer's texts and entries of its lists: what a reader makes before it reads a row.
_TEXT, _ENTRIES = 64 << 20, 1_000_000
_ROWS = 65_536


def read_parquet(stream: IO[bytes], columns: list[str] | None = None) -> pd.DataFrame:
    """The rows of a Parquet file.

    :raises ValueError: saying what is broken or too much. An OSError with a number is the
        store's, and passes through.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(
            stream, thrift_string_size_limit=_TEXT, thrift_container_size_limit=_ENTRIES
        )
        _check_schema(file.schema_arrow)
        return _gather(file, columns)
    except (pa.ArrowException, KeyError, IndexError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(str(error)) from error


def _gather(file: Any, columns: list[str] | None) -> pd.DataFrame:
    """All batches, while they are small enough together."""
    import pyarrow as pa

    schema = file.schema_arrow
    names = schema.names if columns is None else columns
    if absent := sorted(set(names) - set(schema.names)):
        raise ValueError(f"no column {', '.join(absent)}")
    batches, size = [], 0
    for batch in file.iter_batches(_ROWS, columns=columns):
        size += batch.nbytes
        if size > EXPANDED:
            raise ValueError(
                f"its columns take more than {EXPANDED:,} bytes in memory; land smaller partitions"
            )
        batches.append(batch)
    found = batches[0].schema.with_metadata(schema.metadata) if batches else schema
    frame: pd.DataFrame = pa.Table.from_batches(batches, found).select(names).to_pandas()
    return frame


def _check_schema(schema: Any) -> None:
    if len(schema) > COLUMNS:
        raise ValueError(f"{len(schema):,} columns; allowed are {COLUMNS:,}")
    for field in schema:
        if _depth(field.type) > LEVELS:
            raise ValueError(f"column {field.name!r:.80} is nested more than {LEVELS} levels deep")


def _depth(kind: Any, level: int = 0) -> int:
    if level > LEVELS or not kind.num_fields:
        return level
    return max(_depth(kind.field(n).type, level + 1) for n in range(kind.num_fields))
