"""Feature tables: what a view knows, one Parquet per partition, computed once.

A table is named by what it was computed from: the raw rows it reads (its own partition's and its
predecessors' within the lookback), what was quarantined of them, and the code. So a new partition
costs one table a view, whatever the length of history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError
from evergreen.lifecycle.columns import keyed, missing, typed
from evergreen.lifecycle.contracts import Partition
from evergreen.lifecycle.definitions import TIMESTAMP, Definitions
from evergreen.lifecycle.features import table_folder
from evergreen.lifecycle.rows import MAIN, read_raw, time_columns
from evergreen.lifecycle.sets import put_table
from evergreen.store import Store, digest_of

if TYPE_CHECKING:
    import pandas as pd

PREPARE_VERSION = 1
"""Raised when the same inputs are prepared differently; every table and part is then made anew."""


@dataclass
class FeatureTables:
    """The feature tables of a snapshot.

    :ivar history: every usable partition, window and context, oldest first.
    :ivar quarantined: partition digest → URI of the row ids set aside.
    :ivar feature_store: the deployment's ``feature_store.yaml``, whose offline store joins.
    """

    declaration: Declaration
    store: Store
    definitions: Definitions
    history: Sequence[Partition]
    quarantined: Mapping[str, str]
    feature_store: Path | None = None
    _frames: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict)

    def covering(self, partition: Partition, span: timedelta) -> list[Partition]:
        """A partition and its predecessors that hold anything of the ``span`` before it."""
        since = partition.start - span
        before = [p for p in self.history if p.start < partition.start and p.end > since]
        return [*before, partition]

    def recipe(self, partition: Partition, span: timedelta) -> dict[str, Any]:
        """What everything computed from a partition and the ``span`` before it depends on."""
        from importlib.metadata import version

        data = self.declaration.data
        sources = {name: time_columns(self.declaration, name) for name in (MAIN, *data.sources)}
        return {
            "version": PREPARE_VERSION,
            "feast": version("feast"),
            "code": self.definitions.digest,
            "partition": partition.key,
            "timezone": data.timezone,
            "times": sources,
            "raw": [[p.digest, self._set_aside(p)] for p in self.covering(partition, span)],
        }

    def name(self, view: str, partition: Partition) -> str:
        """A table's name below the store's root."""
        digest = digest_of({**self.recipe(partition, self.definitions.lookback), "view": view})
        return f"{table_folder(self.declaration.name, view)}/{partition.key}-{digest[:16]}.parquet"

    def build(self, view: str, partition: Partition) -> str:
        """The URI of a view's table for a partition, computed if it isn't there.

        :raises DeclarationError: when the prepare function returns what can't be used.
        """
        name = self.name(view, partition)
        if not self.store.exists(name):
            made = self.definitions.prepare[view](self.raw(partition, self.definitions.lookback))
            table = self._checked(view, made, partition)
            put_table(self.store, name, table, {"view": view, "partition": partition.key})
        return self.store.uri(name)

    def rows(self, partition: Partition) -> pd.DataFrame:
        """The usable rows of the model's own table; the index is the row id."""
        return self._frame(partition, MAIN).copy(deep=False)

    def raw(self, partition: Partition, span: timedelta) -> dict[str, pd.DataFrame]:
        """Raw rows by source, of a partition and the ``span`` before it.

        The model's own table stands under ``data`` and under the name of its landing folder.
        """
        declared = self.declaration.data
        frames = {
            source: self._span(partition, source, span) for source in (MAIN, *declared.sources)
        }
        return {PurePosixPath(declared.uri).parent.name: frames[MAIN], **frames}

    def _span(self, partition: Partition, source: str, span: timedelta) -> pd.DataFrame:
        import pandas as pd

        if not span:
            return self._frame(partition, source).copy(deep=False)
        frames = [self._frame(p, source) for p in self.covering(partition, span)]
        rows = pd.concat(frames, ignore_index=True)
        times = rows[time_columns(self.declaration, source)[0]]
        return rows[times >= partition.start - span].copy()  # theirs to alter

    def _frame(self, partition: Partition, source: str) -> pd.DataFrame:
        key = (partition.digest, source)
        if key not in self._frames:
            frame = read_raw(self.store, self.declaration, partition.files[source], source)
            if source == MAIN and partition.digest in self.quarantined:
                aside = self.store.get_table(self.quarantined[partition.digest])["row_id"]
                frame = frame.drop(index=aside.tolist())
            self._frames[key] = frame
        return self._frames[key]

    def _forget_all_but(self, partitions: Sequence[Partition]) -> None:
        """Hold the raw rows of one lookback, not of all history."""
        kept = {partition.digest for partition in partitions}
        for key in [key for key in self._frames if key[0] not in kept]:
            del self._frames[key]

    def _set_aside(self, partition: Partition) -> str | None:
        """The quarantine's name below the root: two deployments with the same rows agree on it."""
        uri = self.quarantined.get(partition.digest)
        return uri and uri.removeprefix(f"{self.store.root}/")

    def _checked(self, view: str, made: Any, partition: Partition) -> pd.DataFrame:
        """The partition's own rows of what a prepare function made: typed, unique, sorted.

        A row without its whole key can't be asked for and is left out.
        """
        import pandas as pd

        keys, features = self.definitions.keys(view), self.definitions.columns(view)
        names = [*(key.name for key in keys), TIMESTAMP, *(feature.name for feature in features)]
        if not isinstance(made, pd.DataFrame):
            raise self._refusal(view, f"returned {type(made).__name__}", "a pandas DataFrame")
        if absent := missing(made, names):
            found = f"returned no column {', '.join(absent)}"
            raise self._refusal(
                view, found, f"{', '.join(names)}; found {', '.join(map(str, made))}"
            )
        times = made[TIMESTAMP]
        if not isinstance(times.dtype, pd.DatetimeTZDtype):
            found = f"returned {TIMESTAMP} as {times.dtype}"
            raise self._refusal(view, found, "times with a zone")
        own = made[(times >= partition.start) & (times < partition.end)]
        try:
            columns = {key.name: keyed(own[key.name], key.type) for key in keys}
            columns[TIMESTAMP] = own[TIMESTAMP].dt.tz_convert("UTC").dt.as_unit("us")
            columns |= {f.name: typed(own[f.name], f.type) for f in features}
        except (TypeError, ValueError) as error:
            raise self._refusal(
                view, f"returned a column of another type: {error}", "its schema"
            ) from error
        table = pd.DataFrame(columns).dropna(subset=[key.name for key in keys])
        by = [TIMESTAMP, *(key.name for key in keys)]
        if (twice := table.duplicated(by)).any():
            first = table.loc[twice, by].astype(str).iloc[0].to_dict()
            found = f"returned {int(twice.sum()):,} rows of {partition.key} more than once, first {first}"
            raise self._refusal(view, found, f"one row for each {', '.join(by)}")
        return table.sort_values(by, ignore_index=True)

    def _refusal(self, view: str, found: str, allowed: str) -> DeclarationError:
        return DeclarationError(
            f"{self.definitions.file}: prepare_{view} {found}; allowed is {allowed}"
        )
