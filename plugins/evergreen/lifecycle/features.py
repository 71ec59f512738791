"""Features: a model's definitions in Feast, joined point in time, registered and put online.

Each use opens a Feast store of its own (`evergreen.lifecycle.featurestore`). A join works in a
private folder, since tasks that share a registry race; what is registered and online is changed by
one process at a time, wherever it runs. Feast 0.67 reports nothing home, so there is no telemetry to
switch off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import JoinError
from evergreen.lifecycle.contracts import FeatureSet
from evergreen.lifecycle.definition_reading import load, lookback
from evergreen.lifecycle.definitions import TIMESTAMP, Definitions
from evergreen.lifecycle.featuresources import (
    EXTERNAL,
    check_joinable,
    objects,
    said,
    source,
    table_folder,
)
from evergreen.lifecycle.featurestore import (
    SPARK,
    Profile,
    feature_home,
    joining_home,
    read_profile,
)
from evergreen.lifecycle.modules import code_digest
from evergreen.lifecycle.sets import footer
from evergreen.store import Store, digest_of
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Definitions",
    "JoinError",
    "apply_definitions",
    "code_digest",
    "join",
    "load",
    "lookback",
    "materialize",
    "materialize_tables",
    "open_store",
    "table_folder",
]

_READ_AT_ONCE = 5000


def open_store(declaration: Declaration, workspace: Workspace) -> Any:
    """The model's Feast store: durable registry, online store. For serving and Feast's own UI.

    `apply_definitions` must have run once.
    """
    return feature_home(declaration.name, workspace).open()


def join(
    definitions: Definitions,
    model: str,
    rows: pd.DataFrame,
    tables: Mapping[str, Sequence[str]],
    store: Store,
    *,
    feature_store: Path | None = None,
) -> pd.DataFrame:
    """The features of each row as they were known at its ``event_timestamp``.

    :param rows: ``row_id``, ``event_timestamp`` (UTC) and the columns that the views are asked by.
    :param tables: view → URIs of the feature tables that can hold an answer.
    :param feature_store: the profile whose offline store joins; the embedded one when None.
    :returns: ``row_id`` and the service's features, sorted by ``row_id``; missing where nothing
        was known, or it had outlived the view's time to live. The same on every offline store.
    :raises DeclarationError: when the profile can't be used for these definitions.
    :raises JoinError: when a row was lost or doubled.
    """
    profile = read_profile(feature_store)
    check_joinable(profile, definitions, rows)
    with TemporaryDirectory(prefix="evergreen-join-") as name:
        folder = Path(name)
        sources = {
            view: source(
                profile, model, view, _readable(profile, folder / view, uris, store), every=False
            )
            for view, uris in tables.items()
        }
        feast = joining_home(model, folder, profile).open(writing=True)
        feast.apply(objects(definitions, sources))
        service = feast.get_feature_service(definitions.service.name)
        with profile.reachable():
            joined = feast.get_historical_features(rows.copy(), service).to_df()
    joined = joined.sort_values("row_id", ignore_index=True)
    if joined["row_id"].tolist() != sorted(rows["row_id"].tolist()):
        raise JoinError(
            f"{model}: joining {len(tables)} views gave {len(joined):,} rows, "
            f"{joined['row_id'].nunique():,} of them distinct, for {len(rows):,} that asked. "
            f"No part was written; report it with the versions of Feast and of {profile.offline}."
        )
    answers: pd.DataFrame = joined[["row_id", *(feature.name for feature in definitions.features)]]
    return answers


def apply_definitions(
    declaration: Declaration, workspace: Workspace, columns: Mapping[str, str]
) -> bool:
    """Bring the durable registry up to the definitions; nothing is done when it already is.

    What the folder doesn't define any more is gone from the registry too.

    :param columns: as `definitions.load`.
    :returns: whether anything was written.
    :raises UnavailableError: when a store of the profile can't be reached.
    """
    definitions = load(declaration, columns)
    model, home = declaration.name, feature_home(declaration.name, workspace)
    sources = {
        view: source(
            home.profile,
            model,
            view,
            [workspace.store.uri(f"{table_folder(model, view)}/*.parquet")],
            every=True,
        )
        for view in definitions.views
    }
    things = objects(definitions, sources)
    signature = home.signature()
    digest = digest_of([*map(said, things), *([signature] if signature else [])])
    if home.registered() == digest:
        return False
    if not home.prepared():  # of all models: the tables are one for all
        with workspace.ledger.alone("feast"):
            home.prepare()
    with workspace.ledger.alone(_lock(declaration)):
        home.register(things, declaration.description, digest)
    return True


def materialize(
    declaration: Declaration, workspace: Workspace, feature_set: FeatureSet
) -> dict[str, tuple[datetime, datetime]]:
    """Put a feature set's newest features online: those that can still answer after its end.

    :returns: view → the [start, end) that was read.
    """
    notes = [footer(workspace.store, part.uri).note for part in feature_set.parts]
    first = min(part.start for part in feature_set.parts)
    end = max(datetime.fromisoformat(note["end"]) for note in notes)
    newest = {view: [workspace.store.uri(names[-1])] for view, names in notes[-1]["tables"].items()}
    definitions = load(declaration, _columns(workspace.store, newest))
    done: dict[str, tuple[datetime, datetime]] = {}
    for view, definition in definitions.views.items():
        start = end - definition.ttl if definitions.reach(view) and definition.ttl else first
        names = [
            name
            for note in notes
            if datetime.fromisoformat(note["end"]) > start
            for name in note["tables"][view]
        ]
        uris = [workspace.store.uri(name) for name in dict.fromkeys(names)]
        done |= materialize_tables(declaration, workspace, {view: uris}, start, end)
    return done


def materialize_tables(
    declaration: Declaration,
    workspace: Workspace,
    tables: Mapping[str, Sequence[str]],
    start: datetime,
    end: datetime,
) -> dict[str, tuple[datetime, datetime]]:
    """Put each key's newest row of [start, end) online, unless a newer one is there already.

    Feast's own ``materialize`` overwrites whatever is online, so that repeating an old window
    would move rows back; and it includes ``end``. SQLite keeps times in whole seconds: there an
    older row of the same second counts as new.

    :param tables: view → URIs of its feature tables.
    :returns: view → the bounds read.
    """
    columns = _columns(workspace.store, tables)
    apply_definitions(declaration, workspace, columns)
    definitions = load(declaration, columns)
    home = feature_home(declaration.name, workspace)
    with workspace.ledger.alone(_lock(declaration)), home.profile.reachable():
        feast = home.open(writing=True)
        for view, uris in tables.items():
            keys = [key.name for key in definitions.keys(view)]
            latest = _latest(workspace.store, uris, keys, start, end)
            fresh = _newer(feast, view, keys, latest)
            if len(fresh):
                feast.provider.ingest_df(feast.get_feature_view(view), fresh)
    return dict.fromkeys(tables, (start, end))


def _latest(
    store: Store, uris: Sequence[str], keys: list[str], start: datetime, end: datetime
) -> pd.DataFrame:
    """Each key's newest row of [start, end)."""
    import pandas as pd

    frames = [store.get_table(uri) for uri in uris]
    table = pd.concat([f[(f[TIMESTAMP] >= start) & (f[TIMESTAMP] < end)] for f in frames])
    table = table.sort_values([TIMESTAMP, *keys])
    return table.drop_duplicates(keys, keep="last").reset_index(drop=True)


def _newer(feast: Any, view: str, keys: list[str], latest: pd.DataFrame) -> pd.DataFrame:
    """The rows that aren't older than what is online for their keys."""
    feature = feast.get_feature_view(view).features[0].name
    online: list[int] = []
    for start in range(0, len(latest), _READ_AT_ONCE):
        asked = latest[keys].iloc[start : start + _READ_AT_ONCE].to_dict("records")
        answer = feast.get_online_features([f"{view}:{feature}"], asked).proto
        place = list(answer.metadata.feature_names.val).index(feature)
        online += [moment.ToMicroseconds() for moment in answer.results[place].event_timestamps]
    return latest[latest[TIMESTAMP].map(lambda moment: moment.value // 1000) >= online]


def _columns(store: Store, tables: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The types of feature tables: what the one view of a model without a module is made of."""
    return {
        name: kind
        for uris in tables.values()
        for name, kind in footer(store, uris[-1]).columns.items()
    }


def _readable(profile: Profile, folder: Path, uris: Sequence[str], store: Store) -> Sequence[str]:
    """Feature tables where the offline store can read them: copies, for those that run here."""
    if profile.offline in (SPARK, *EXTERNAL):
        return uris
    folder.mkdir()
    for number, uri in enumerate(uris):
        (folder / f"{number}.parquet").write_bytes(store.read_bytes(uri))
    return [f"{folder}/*.parquet"]


def _lock(declaration: Declaration) -> str:
    """Who registers or materializes holds it: reading what is there and writing over it is one step."""
    return f"feast/{declaration.name}"
