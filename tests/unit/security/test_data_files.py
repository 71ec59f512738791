"""A landed file is refused by itself, whatever is wrong with it, and never fills the memory."""

import errno
import io
import random
from typing import IO

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from evergreen.lifecycle import untrusted
from evergreen.lifecycle.untrusted import LEVELS, read_parquet

FRAME = pd.DataFrame(
    {
        "a": np.arange(500.0),
        "b": [f"x{n % 7}" for n in range(500)],
        "at": pd.date_range("2026-01-01", periods=500, freq="h", tz="UTC").as_unit("us"),
    }
)


def _bytes(table: pa.Table) -> io.BytesIO:
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return io.BytesIO(buffer.getvalue())


def _file() -> io.BytesIO:
    return _bytes(pa.Table.from_pandas(FRAME, preserve_index=False))


def test_rows_come_as_pandas_reads_them() -> None:
    pd.testing.assert_frame_equal(read_parquet(_file()), pd.read_parquet(_file()))
    some = ["at", "a"]
    pd.testing.assert_frame_equal(
        read_parquet(_file(), some)[some], pd.read_parquet(_file(), columns=some)[some]
    )
    empty = _bytes(pa.Table.from_pandas(FRAME.head(0), preserve_index=False))
    assert list(read_parquet(empty)) == list(FRAME)
    with pytest.raises(ValueError, match="no column nowhere"):
        read_parquet(_file(), ["nowhere"])


def test_broken_parquet_is_refused_by_itself() -> None:
    """Any bytes are changed: it is read, or is a ValueError, never a store that is away."""
    whole, chance, refused = _file().getvalue(), random.Random(0), 0
    for changes in [1, 3, 20] * 60:
        content = bytearray(whole)
        for _ in range(changes):
            content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            read_parquet(io.BytesIO(content))
        except ValueError:
            refused += 1
    assert refused > 60
    for cut in (0, 4, 100, len(whole) - 1):
        with pytest.raises(ValueError, match=r"."):
            read_parquet(io.BytesIO(whole[:cut]))


def test_a_file_that_unpacks_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    indices = pa.array(np.zeros(100_000, "int32"))
    table = pa.table({"a": pa.DictionaryArray.from_arrays(indices, ["x" * 1000]).cast(pa.string())})
    small = _bytes(table)
    del table
    assert len(small.getvalue()) < 40_000
    monkeypatch.setattr(untrusted, "EXPANDED", 10 << 20)
    with pytest.raises(ValueError, match="more than 10,485,760 bytes in memory"):
        read_parquet(small)


def test_columns_and_depth_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    nested: pa.DataType = pa.int64()
    for _ in range(LEVELS + 1):
        nested = pa.list_(nested)
    with pytest.raises(ValueError, match=f"more than {LEVELS} levels"):
        read_parquet(_bytes(pa.table({"a": pa.array([], nested)})))
    monkeypatch.setattr(untrusted, "COLUMNS", 2)
    with pytest.raises(ValueError, match="3 columns; allowed are 2"):
        read_parquet(_file())


def test_a_store_that_is_away_is_not_the_files_fault() -> None:
    class Away(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "away")

    away: IO[bytes] = Away(_file().getvalue())
    with pytest.raises(OSError, match="away") as caught:
        read_parquet(away)
    assert caught.value.errno == errno.EIO
