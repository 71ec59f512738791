"""A landed file is refused by itself, whatever is wrong with it, and never fills the memory."""

import errno
import io
import random
from typing import IO, Any

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


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None, "b"], pa.large_string()),
        pa.array(["a", None, "b"], pa.string_view()),
        pa.array([b"a", None, b"b"]),
        pa.array(["a", None, "b"]).dictionary_encode(),
        pa.array([{"x": ["a"], "y": "c"}, None, {"x": None, "y": "d"}]),
        pa.array([["a", "b"], None, []], pa.large_list(pa.string())),
        pa.array([[("k", "v")], None, []], pa.map_(pa.string(), pa.string())),
        pa.array([b"ab", None, b"cd"], pa.binary(2)),
        pa.array([1, None, 2], pa.decimal128(10, 2)),
        pa.array(["{}", None, "[]"], pa.json_()),
        pa.array([True, None, False]),
    ],
    ids=lambda column: str(column.type),
)
def test_every_kind_of_column_comes_as_pandas_reads_it(column: pa.Array) -> None:
    file = io.BytesIO()
    whole = pa.table({"a": pa.concat_arrays([column] * 20), "b.x": np.arange(60)})
    parquet.write_table(whole, file, row_group_size=7)
    pd.testing.assert_frame_equal(read_parquet(file), pd.read_parquet(file))


@pytest.mark.parametrize("limit", [500, 50_000])
def test_a_dictionary_may_end_within_a_group_of_rows(limit: int) -> None:
    file, texts = io.BytesIO(), [f"text {n}" for n in range(6000)]
    whole = pa.table({"a": texts, "l": [[t, t] for t in texts], "s": [{"x": t} for t in texts]})
    parquet.write_table(
        whole, file, dictionary_pagesize_limit=limit, write_batch_size=100, data_page_size=500,
        row_group_size=4000,
    )  # fmt: skip
    pd.testing.assert_frame_equal(read_parquet(file), pd.read_parquet(file))


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_texts_come_in_every_encoding(encoding: str) -> None:
    file = io.BytesIO()
    whole = pa.table({"a": [f"text {n}" for n in range(60)]})
    options: dict[str, Any] = {"use_dictionary": False, "column_encoding": {"a": encoding}}
    parquet.write_table(whole, file, row_group_size=7, **options)
    pd.testing.assert_frame_equal(read_parquet(file), whole.to_pandas())


def _repeated(value: Any, kind: pa.DataType) -> pa.Array:
    """A value so often that it takes hundreds of megabytes; made without them."""
    indices = pa.array(np.zeros(10_000, "int32"))
    return pa.DictionaryArray.from_arrays(indices, pa.array([value], kind))


def _bomb(kind: str) -> tuple[pa.Array, dict[str, Any]]:
    """What to write, and how."""
    text = _repeated("x" * 40_000, pa.string())
    offsets = pa.array(range(0, 10_001, 10), pa.int32())
    keys = pa.array([f"k{n}" for n in range(10_000)])
    return {
        "text": (text, {}),
        "texts of several pages": (text, {"data_page_size": 100, "row_group_size": 1000}),
        "category": (text, {"store_schema": True}),
        "fixed": (_repeated(b"x" * 8_000, pa.binary(8_000)), {}),
        "wide": (_repeated(b"x" * 40_000, pa.binary(40_000)), {}),
        "struct": (pa.StructArray.from_arrays([text, keys], ["a", "b"]), {}),
        "list": (pa.ListArray.from_arrays(offsets, text), {}),
        "map": (pa.MapArray.from_arrays(offsets, keys, text), {}),
        "json": (pa.array(["[" + " " * 40_000 + "]"] * 1_000, pa.json_()), {}),
        "differences": (
            pa.array(["x" * 40_000] * 1_000),
            {"use_dictionary": False, "column_encoding": {"a": "DELTA_BYTE_ARRAY"}},
        ),
        "numbers in a list": (
            pa.ListArray.from_arrays(pa.array([0, 5_000_000], pa.int32()), np.zeros(5_000_000)),
            {"use_dictionary": True, "dictionary_pagesize_limit": 1 << 20},
        ),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "text", "texts of several pages", "category", "fixed", "wide", "struct", "list", "map", "json",
        "differences", "numbers in a list",
    ],
)  # fmt: skip
def test_a_file_that_unpacks_without_end_is_refused(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before it is in memory: Arrow never holds much more than the bound."""
    array, options = _bomb(kind)
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"a": array}), buffer, **{"store_schema": False, **options})
    del array
    assert len(buffer.getvalue()) < 100_000
    monkeypatch.setattr(untrusted, "EXPANDED", 10 << 20)
    usual = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counted)
    try:
        with pytest.raises(ValueError, match="more than 10,485,760 bytes in memory"):
            read_parquet(io.BytesIO(buffer.getvalue()))
    finally:
        pa.set_memory_pool(usual)
    assert counted.max_memory() < 30 << 20


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
