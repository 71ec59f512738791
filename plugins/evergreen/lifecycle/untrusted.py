"""A landed Parquet file, read as what it may be: broken, hostile, or far larger than it looks.

Two kilobytes of dictionary pages can stand for gigabytes, so what a file takes is known before it
is made: its columns are read one after the other, texts as indices into their dictionary, and the
file is given up where its values, written out, are too many. Not bounded by that are a page (2 GiB,
says the format) and a list whose last page holds more values than the footer says.

Arrow raises OSError for broken pages as well as for a store that is away; only the second is worth
a retry.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import chain
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: Bytes of a file's columns in memory, its columns, levels of lists and structs in one of them.
EXPANDED, COLUMNS, LEVELS = 16 << 30, 10_000, 8
#: Bytes of a footer's texts and entries of its lists: what a reader makes before it reads a row.
_LIMITS = {"thrift_string_size_limit": 64 << 20, "thrift_container_size_limit": 1_000_000}
#: Rows read at once; rows of the row groups that are read before the next column is.
_ROWS, _SPAN = 65_536, 1 << 20
#: Rows of which Arrow makes room, however few are asked for.
_LEAST = 1024
#: Bytes of a page, so of its longest text; bytes of texts that Arrow counts in 32 bits.
_PAGE = _TEXTS = 1 << 31
_TOO_LARGE = "its columns take more than {:,} bytes in memory; land smaller partitions"
#: A text is told by its difference from another; Arrow makes no dictionary of them.
_DELTAS = frozenset({"DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"})


def read_parquet(stream: IO[bytes], columns: list[str] | None = None) -> pd.DataFrame:
    """The rows of a Parquet file.

    :raises ValueError: saying what is broken or too much. An OSError with a number is the
        store's, and passes through.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(stream, **_LIMITS)
        _check_schema(file)
        texts = parquet.ParquetFile(
            stream, metadata=file.metadata, read_dictionary=_texts(file), **_LIMITS
        )
        return _gather(texts, file.schema_arrow, columns)
    except (pa.ArrowException, KeyError, IndexError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(str(error)) from error


def _gather(file: Any, schema: Any, columns: list[str] | None) -> pd.DataFrame:
    """All rows, while they are small enough together.

    :param file: to be read with texts as dictionaries.
    :param schema: as it is without.
    """
    import pyarrow as pa

    names = schema.names if columns is None else columns
    if absent := sorted(set(names) - set(schema.names)):
        raise ValueError(f"no column {', '.join(absent)}")
    kinds = {name: _kind(schema.field(name).type) for name in schema.names if name in names}
    rows = _rows_at_once(file)
    found: dict[str, list[Any]] = {name: [] for name in kinds}
    size = 0
    for groups in _spans(file.metadata):
        for name, pieces in found.items():
            # Of dictionaries within lists and structs, Arrow joins no two groups'.
            parts = [[group] for group in groups] if kinds[name].num_fields else [groups]
            for batch in chain.from_iterable(
                file.iter_batches(rows[name], row_groups=part, columns=[name]) for part in parts
            ):
                for piece, taken in _pieces(batch.column(name)):
                    size += taken
                    if size > EXPANDED:
                        raise ValueError(_TOO_LARGE.format(EXPANDED))
                    pieces.append(piece if piece.type == kinds[name] else piece.cast(kinds[name]))
    arrays = [pa.chunked_array(pieces, kinds[name]) for name, pieces in found.items()]
    table = pa.table(arrays, names=list(found)).replace_schema_metadata(schema.metadata)
    frame: pd.DataFrame = table.select(names).to_pandas()
    return frame


def _spans(metadata: Any) -> Iterator[list[int]]:
    """Row groups read before the next column is: a file is read from begin to end, and many small
    groups cost no more than a large one."""
    span, rows = list[int](), 0
    for number in range(metadata.num_row_groups):
        span.append(number)
        rows += metadata.row_group(number).num_rows
        if rows >= _SPAN:
            yield span
            span, rows = [], 0
    if span:
        yield span


def _texts(file: Any) -> list[str]:
    """The texts that Arrow can read as dictionaries, by their path in the file."""
    metadata = file.metadata
    found = {n: c.path for n, c in enumerate(file.schema) if c.physical_type == "BYTE_ARRAY"}
    for number in range(metadata.num_row_groups if found else 0):
        group = metadata.row_group(number)
        for column in [n for n in found if not _DELTAS.isdisjoint(group.column(n).encodings)]:
            del found[column]
    return [*found.values()]


def _rows_at_once(file: Any) -> dict[str, int]:
    """Column → how many of its rows can be made before their size is known.

    A text that comes without a dictionary is as long as a page, at worst.
    """
    leaves = sorted(file.schema, key=lambda leaf: leaf.path)
    paths = [leaf.path for leaf in leaves]
    found = {}
    for field in file.schema_arrow:
        spans = ((field.name, f"{field.name}\0"), (f"{field.name}.", f"{field.name}/"))
        within = [
            c for a, b in spans for c in leaves[bisect_left(paths, a) : bisect_left(paths, b)]
        ]
        if sum(c.physical_type == "BYTE_ARRAY" for c in within) > _dictionaries(field.type):
            found[field.name] = max(1, EXPANDED // _PAGE)
        else:
            width = sum(max(c.length, 16) for c in within)
            found[field.name] = max(1, min(_ROWS, EXPANDED // 2 // width))
    return found


def _pieces(column: Any) -> Iterator[tuple[Any, int]]:
    """A batch's column in pieces whose texts Arrow can count, and the bytes of each."""
    size = _expanded(column)
    if size < _TEXTS or len(column) < 2:
        yield column, size
    else:
        half = len(column) // 2
        yield from _pieces(column.slice(0, half))
        yield from _pieces(column.slice(half))


def _expanded(array: Any) -> int:
    """The bytes of an array once its dictionaries are written out."""
    import pyarrow as pa
    from pyarrow import compute

    kind = array.type
    if pa.types.is_dictionary(kind) and _is_text(kind.value_type):
        lengths = compute.binary_length(array.dictionary).cast(pa.int64())
        return 4 * len(array) + int(compute.sum(lengths.take(array.indices)).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(map(_expanded, array.flatten()), len(array))
    if pa.types.is_map(kind):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        parts = (part.slice(first, last - first) for part in (array.keys, array.items))
        return sum(map(_expanded, parts), 8 * len(array))
    if kind.num_fields:
        return 8 * len(array) + _expanded(array.flatten())
    return int(array.nbytes)


def _kind(kind: Any) -> Any:
    """What a column is to be in memory: as declared, but Arrow casts no dictionary to a view."""
    import pyarrow as pa

    views = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return views.get(kind, kind)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return any(
        is_kind(kind)
        for is_kind in (
            types.is_string,
            types.is_binary,
            types.is_large_string,
            types.is_large_binary,
        )
    )


def _dictionaries(kind: Any) -> int:
    """How many of a type's leaves are dictionaries."""
    import pyarrow as pa

    below = sum(_dictionaries(kind.field(n).type) for n in range(kind.num_fields))
    return below + int(pa.types.is_dictionary(kind))


def _check_schema(file: Any) -> None:
    """Refuse more than a reader should make arrays of.

    :raises ValueError: for too many columns or levels, or lists that are too long together.
    """
    schema, leaves = file.schema_arrow, [*file.schema]
    if (count := max(len(schema), len(leaves))) > COLUMNS:
        raise ValueError(f"{count:,} columns; allowed are {COLUMNS:,}")
    for field in schema:
        if _depth(field.type) > LEVELS:
            raise ValueError(f"column {field.name!r:.80} is nested more than {LEVELS} levels deep")
    if max((leaf.length for leaf in leaves), default=0) * _LEAST > EXPANDED:
        raise ValueError(_TOO_LARGE.format(EXPANDED))
    lists = [n for n, leaf in enumerate(leaves) if leaf.max_repetition_level]
    groups = range(file.metadata.num_row_groups if lists else 0)
    chunks = (file.metadata.row_group(g).column(n) for g in groups for n in lists)
    if sum(4 * chunk.num_values for chunk in chunks) > EXPANDED:
        raise ValueError(_TOO_LARGE.format(EXPANDED))


def _depth(kind: Any, level: int = 0) -> int:
    if level > LEVELS or not kind.num_fields:
        return level
    return max(_depth(kind.field(n).type, level + 1) for n in range(kind.num_fields))
