"""Label files beside the rows that they are about, by key, a bounded number of each at a time.

Rows and labels may come in any order and in any file. So every key of a row is looked for in each
file that isn't older than the row's partition; a file is read once for as many rows as fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evergreen.declaration import Declaration
from evergreen.errors import DataBlockedError
from evergreen.lifecycle.columns import keyed, kind_of, of_its_kind
from evergreen.lifecycle.contracts import Partition, PartitionFile
from evergreen.lifecycle.rows import LABELS, MAIN, label_timestamps, main_file, read_raw
from evergreen.store import Store

if TYPE_CHECKING:
    import pandas as pd

AT_ONCE = 2_000_000
"""So many rows' keys, and so many labels, are held in memory at a time."""


@dataclass(frozen=True)
class Found:
    """A partition's labels, and the digests of the files in which they stand.

    ``labels`` has ``row_id``, ``label`` and ``label_timestamp``, sorted by row and time.
    """

    partition: Partition
    labels: pd.DataFrame
    sources: list[str]


class LabelFiles:
    """Partitions of the labels' own table, oldest first."""

    def __init__(self, declaration: Declaration, store: Store, files: Sequence[Partition]) -> None:
        import numpy as np

        self._declaration, self._store, self._files = declaration, store, files
        self._kinds: dict[str, tuple[str, str]] = {}
        self._counts: dict[int, int] = {}
        self._offsets = np.cumsum([0, *(file.rows for file in files)])
        self._hits = np.zeros(int(self._offsets[-1]), dtype="uint8")  # partitions; 2 is several

    @property
    def count(self) -> int:
        """How many labels the files hold that were looked into."""
        return sum(self._counts.values())

    @property
    def orphans(self) -> int:
        """How many of them are of no row that was seen."""
        return self.count - int((self._hits > 0).sum())

    @property
    def doubled(self) -> int:
        """How many are of rows in several partitions."""
        return int((self._hits > 1).sum())

    def of(self, partitions: Sequence[Partition]) -> Iterator[Found]:
        """The labels of each partition, in its order.

        :param partitions: of the model's own table, oldest first.
        :raises DataBlockedError: when keys, or labels, are numbers here and text there.
        """
        for group in _batches([p.rows for p in partitions]):
            those = [partitions[n] for n in group]
            rows = _together([self._rows(p, n) for n, p in enumerate(those)])
            near = [n for n, file in enumerate(self._files) if file.end > those[0].start]
            batches = _batches([self._files[n].rows for n in near])
            matches = [self._match([near[n] for n in batch], rows, those) for batch in batches]
            yield from self._parted(those, matches)

    def _rows(self, partition: Partition, place: int) -> pd.DataFrame:
        """The keys of a partition's rows, with its ``place`` among those read together."""
        file, names = main_file(partition), self._declaration.data.label.key
        raw = self._read(file, MAIN, names)
        rows = self._keys(raw, file.uri)
        return rows.assign(partition=place, row_id=rows.index.astype("int64"))

    def _labels(self, place: int) -> pd.DataFrame:
        """The labels of a file with their keys and times."""
        file, label = self._files[place].files[LABELS], self._declaration.data.label
        raw = self._read(file, LABELS, (label.column, *label.key))
        known = label_timestamps(self._declaration, raw, LABELS)
        raw = raw[known.notna()]
        self._counts[place] = len(raw)
        labels, values = self._keys(raw, file.uri), of_its_kind(raw[label.column])
        if len(raw):
            self._agree(label.column, kind_of(raw[label.column]), file.uri)
        return labels.assign(
            label=values[labels.index],
            label_timestamp=known[labels.index],
            file=place,
            position=labels.index + self._offsets[place],
        )

    def _read(self, file: PartitionFile, source: str, columns: Sequence[str]) -> pd.DataFrame:
        if absent := [column for column in columns if column not in file.columns]:
            raise DataBlockedError(
                f"{file.uri} has no column {', '.join(absent)}, though data.label names it. "
                "Land it again with it, or correct the declaration."
            )
        return read_raw(self._store, self._declaration, file, source, list(columns))

    def _keys(self, raw: pd.DataFrame, uri: str) -> pd.DataFrame:
        """The key columns as ``key_0``, …, where all of them are there."""
        import pandas as pd

        names = list(self._declaration.data.label.key)
        whole = raw[raw[names].notna().all(axis=1)]
        columns = {}
        for number, name in enumerate(names):
            values = whole[name]
            try:
                columns[f"key_{number}"], kind = _comparable(values)
            except (TypeError, ValueError) as error:
                raise DataBlockedError(
                    f"{uri}: label.key {name} holds {values.dtype} values: {error}. Allowed are "
                    "text, whole numbers and times with a zone; land the column as one of these."
                ) from error
            if len(whole):
                self._agree(f"label.key {name}", kind, uri)
        return pd.DataFrame(columns, index=whole.index)

    def _agree(self, what: str, kind: str, uri: str) -> None:
        """Values that are numbers in one file and text in the next would never be the same."""
        before, where = self._kinds.setdefault(what, (kind, uri))
        if before != kind:
            raise DataBlockedError(
                f"{uri}: {what} is {kind} there and {before} in {where}. Allowed is one type in "
                "all files of the data and its labels; land one of them again."
            )

    def _match(
        self, places: Sequence[int], rows: pd.DataFrame, partitions: Sequence[Partition]
    ) -> pd.DataFrame:
        """The labels of some files that are of ``rows``."""
        import numpy as np

        labels = _together([self._labels(place) for place in places])
        if labels.empty or rows.empty:
            return self._none()
        keys = [name for name in rows if str(name).startswith("key_")]
        found = labels.merge(rows, on=keys)[[*_MATCH]]
        starts = np.array([p.start.timestamp() for p in partitions])
        ends = np.array([file.end.timestamp() for file in self._files])
        found = found[starts[found["partition"]] < ends[found["file"]]]
        self._hit(found)
        return found

    def _hit(self, found: pd.DataFrame) -> None:
        import numpy as np

        once = found[["position", "partition"]].drop_duplicates()["position"].to_numpy("int64")
        positions, counts = np.unique(once, return_counts=True)
        self._hits[positions] = np.minimum(self._hits[positions] + counts, 2)

    def _parted(
        self, partitions: Sequence[Partition], matches: Sequence[pd.DataFrame]
    ) -> Iterator[Found]:
        every = _together(matches) if matches else self._none()
        every = every.sort_values(["partition", "row_id", "label_timestamp", "position"])
        by_partition = dict(iter(every.groupby("partition")))
        for place, partition in enumerate(partitions):
            own = by_partition.get(place, self._none())
            sources = [self._files[n].digest for n in sorted(own["file"].unique())]
            labels = own[["row_id", "label", "label_timestamp"]].reset_index(drop=True)
            yield Found(partition, labels, sources)

    def _none(self) -> pd.DataFrame:
        """No match, in the columns' types."""
        import pandas as pd

        kind, _ = self._kinds.get(self._declaration.data.label.column, ("number", ""))
        types = {**_MATCH, "label": "float64" if kind == "number" else "object"}
        return pd.DataFrame({name: pd.Series(dtype=of) for name, of in types.items()})


_MATCH = {
    "partition": "int64",
    "row_id": "int64",
    "label": "object",
    "label_timestamp": "datetime64[us, UTC]",
    "file": "int64",
    "position": "int64",
}


def _batches(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Places in order, as many together as are `AT_ONCE` at most; one that is larger by itself."""
    batch: list[int] = []
    held = 0
    for place, size in enumerate(sizes):
        if batch and held + size > AT_ONCE:
            yield batch
            batch, held = [], 0
        batch.append(place)
        held += size
    if batch:
        yield batch


def _together(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One frame of several; an empty one's types say nothing."""
    import pandas as pd

    return pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)


def _comparable(values: pd.Series) -> tuple[pd.Series, str]:
    """A key's values so that the same ones are equal in every file, and what kind they are.

    :raises TypeError: for fractions.
    """
    import pandas as pd

    if isinstance(values.dtype, pd.DatetimeTZDtype):
        return values.dt.tz_convert("UTC").dt.as_unit("us").astype("int64"), "time"
    kind = kind_of(values)
    return keyed(values, kind), kind
