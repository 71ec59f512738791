"""What replicas answered, read back: the files that the ledger names, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import CorruptError
from evergreen.ledger import records
from evergreen.ledger.tables import ServedRow
from evergreen.lifecycle.servedlines import PREDICTION, SAID, kinds_of, learnt_features, table_of
from evergreen.store import Store
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

_ORDER = ["served_at", "request_id", "request_row", "role", "model_version"]


def read_served(
    declaration: Declaration,
    workspace: Workspace,
    partition: str | None = None,
    *,
    version: str | None = None,
    roles: Sequence[str] = ("champion", "canary"),
) -> pd.DataFrame:
    """What replicas answered, once each, in the order in which it was served.

    :param partition: answers to rows of its time; of all time when None.
    :param version: answers of this version only.
    :param roles: answers given in these roles only.
    :returns: the columns of batch scoring's log (``row_id`` is missing: no raw row is known of a
        request), with the features of all versions, then `SAID`. Without any answer it is empty,
        with the champion's features.
    :raises CorruptError: when a file that the ledger names is gone.
    """
    import pandas as pd
    import pyarrow as pa

    with workspace.ledger.read() as session:
        rows = records.served(session, declaration.name, partition)
    asked: list[Any] = [("role", "in", list(roles))]
    asked += [("model_version", "==", version)] if version is not None else []
    tables = [_read_file(workspace.store, row, asked) for row in rows]
    if not tables:
        return _nothing(declaration, workspace)
    schema = _united(tables)
    whole = pa.concat_tables([_as(table, schema) for table in tables])
    frame: pd.DataFrame = whole.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    complete = [n for n, v in frame.items() if v.dtype == "Int64" and len(v) and v.notna().all()]
    frame = frame.astype(dict.fromkeys(complete, "int64"))
    return frame.sort_values(_ORDER, kind="stable", ignore_index=True)


def _nothing(declaration: Declaration, workspace: Workspace) -> pd.DataFrame:
    with workspace.ledger.read() as session:
        live = records.champion(session, declaration.name)
    if live is None:
        return table_of(declaration, [], kinds_of(declaration, workspace, []))
    features = learnt_features(workspace.store, live)
    kinds = kinds_of(declaration, workspace, [live.version])
    return table_of(declaration, [], kinds, [feature.name for feature in features])


def _read_file(store: Store, row: ServedRow, asked: list[Any]) -> Any:
    from pyarrow import parquet

    try:
        with store.reachable(), store.path(row.uri).open("rb") as stream:
            return parquet.read_table(stream, filters=asked)
    except FileNotFoundError as error:
        raise CorruptError(
            f"{row.uri} is gone, though the ledger records {row.rows:,} answers in it. Restore it "
            "from a backup."
        ) from error


def _united(tables: Sequence[Any]) -> Any:
    """A schema that every file fits: text where one holds text, else numbers.

    A column that is all missing has no say where another file holds values.
    """
    import pyarrow as pa

    every: dict[str, list[Any]] = {}
    filled: dict[str, list[Any]] = {}
    for table in tables:
        for name, values in zip(table.column_names, table.columns, strict=True):
            every.setdefault(name, []).append(values.type)
            if values.null_count < len(values):
                filled.setdefault(name, []).append(values.type)
    types = {
        name: next((t for t in (pa.string(), pa.float64()) if t in found), found[0])
        for name, found in (every | filled).items()
    }
    answers = sorted(filter(PREDICTION.fullmatch, types), key=lambda name: (len(name), name))
    rest = [name for name in types if name not in SAID and name not in answers]
    return pa.schema([(name, types[name]) for name in (*rest, *answers, *SAID)])


def _as(table: Any, schema: Any) -> Any:
    import pyarrow as pa

    names = set(table.column_names)
    columns = [
        table[field.name].cast(field.type)
        if field.name in names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
