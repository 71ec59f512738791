"""Features: a model's definitions in Feast, joined point in time, registered and put online.

Each use opens a Feast store of its own. A join works in a private folder, since tasks that share
a registry file race. The durable registry is built aside and renamed: it is whole or as before,
whoever writes at once. Feast 0.67 reports nothing home, so there is no telemetry to switch off.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import JoinError
from evergreen.lifecycle.contracts import FeatureSet
from evergreen.lifecycle.definition_reading import load, lookback
from evergreen.lifecycle.definitions import TIMESTAMP, Definitions
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

OFFLINE_STORE = "evergreen.lifecycle.pointintime.AsOfOfflineStore"
_DIGEST = "evergreen.definitions"
_READ_AT_ONCE = 5000


def table_folder(model: str, view: str) -> str:
    """Where a view's feature tables are, below the store's root."""
    return f"tables/features/{model}/{view}"


def open_store(declaration: Declaration, workspace: Workspace) -> Any:
    """The model's Feast store: durable registry, online store. For serving and Feast's own UI.

    `apply_definitions` must have run once.
    """
    folder = _home(declaration, workspace)
    return _open(declaration.name, folder / "registry.db", folder / "online.db")


def join(
    definitions: Definitions,
    model: str,
    rows: pd.DataFrame,
    tables: Mapping[str, Sequence[str]],
    store: Store,
) -> pd.DataFrame:
    """The features of each row as they were known at its ``event_timestamp``.

    :param rows: ``row_id``, ``event_timestamp`` (UTC) and the columns that the views are asked by.
    :param tables: view → URIs of the feature tables that can hold an answer.
    :returns: ``row_id`` and the service's features, sorted by ``row_id``; missing where nothing
        was known, or it had outlived the view's time to live.
    :raises JoinError: when a row was lost or doubled.
    """
    with TemporaryDirectory(prefix="evergreen-join-") as name:
        folder = Path(name)
        for view, uris in tables.items():
            (folder / view).mkdir()
            for number, uri in enumerate(uris):
                (folder / view / f"{number}.parquet").write_bytes(store.read_bytes(uri))
        feast = _open(model, folder / "registry.db", folder / "online.db")
        feast.apply(_objects(definitions, {view: f"{folder}/{view}/*.parquet" for view in tables}))
        service = feast.get_feature_service(definitions.service.name)
        joined = feast.get_historical_features(rows, service).to_df()
    joined = joined.sort_values("row_id", ignore_index=True)
    if joined["row_id"].tolist() != sorted(rows["row_id"].tolist()):
        raise JoinError(
            f"{model}: joining {len(tables)} views gave {len(joined):,} rows, "
            f"{joined['row_id'].nunique():,} of them distinct, for {len(rows):,} that asked. "
            "No part was written; report it with the versions of Feast and DuckDB."
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
    """
    definitions = load(declaration, columns)
    store, folder = workspace.store, _home(declaration, workspace)
    sources = {
        v: store.uri(f"{table_folder(declaration.name, v)}/*.parquet") for v in definitions.views
    }
    objects = _objects(definitions, sources)
    digest = digest_of([_said(thing) for thing in objects])
    registry, online = folder / "registry.db", folder / "online.db"
    if online.exists() and _registered(registry) == digest:
        return False
    from feast.project import Project

    project = Project(name=declaration.name, description=declaration.description)
    project.tags = {_DIGEST: digest}
    with _alone(folder):
        Store(str(folder)).write(
            registry.name,
            lambda aside: _open(declaration.name, aside, online).apply([project, *objects]),
        )
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
    would move rows back; and it includes ``end``. Times are compared in whole seconds, which is
    what the online store keeps.

    :param tables: view → URIs of its feature tables.
    :returns: view → the bounds read.
    """
    columns = _columns(workspace.store, tables)
    apply_definitions(declaration, workspace, columns)
    definitions = load(declaration, columns)
    with _alone(_home(declaration, workspace)):
        feast = open_store(declaration, workspace)
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
        online += [moment.seconds for moment in answer.results[place].event_timestamps]
    return latest[latest[TIMESTAMP].map(lambda moment: int(moment.timestamp())) >= online]


def _columns(store: Store, tables: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The types of feature tables: what the one view of a model without a module is made of."""
    return {
        name: kind
        for uris in tables.values()
        for name, kind in footer(store, uris[-1]).columns.items()
    }


def _home(declaration: Declaration, workspace: Workspace) -> Path:
    folder = workspace.home / "feast" / declaration.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _open(model: str, registry: Path, online: Path) -> Any:
    from feast import FeatureStore, RepoConfig

    config = RepoConfig(
        project=model,
        provider="local",
        registry={"registry_type": "file", "path": str(registry)},
        offline_store={"type": OFFLINE_STORE},
        online_store={"type": "sqlite", "path": str(online)},
        entity_key_serialization_version=3,
    )
    return FeatureStore(config=config)


def _objects(definitions: Definitions, sources: Mapping[str, str]) -> list[Any]:
    """New Feast objects over the real tables: applying alters objects, and the model's are shared."""
    from feast import FeatureService, FeatureView, Field, FileSource
    from feast.types import from_value_type

    entities = {entity.name: entity for entity in definitions.entities.values()}
    views = []
    for name, view in definitions.views.items():
        own = [entities[entity] for entity in view.entities]
        keys = [Field(name=e.join_key, dtype=from_value_type(e.value_type)) for e in own]
        source = FileSource(name=f"{name}_tables", path=sources[name], timestamp_field=TIMESTAMP)
        views.append(
            FeatureView(
                name=name,
                entities=own,
                ttl=view.ttl,
                schema=[*keys, *view.features],
                source=source,
                description=view.description,
                tags=dict(view.tags),
                owner=view.owner,
            )
        )
    service = FeatureService.from_proto(definitions.service.to_proto())
    return [*entities.values(), *views, service]


def _said(thing: Any) -> str:
    """What an object defines, without the times at which Feast made it."""
    spec = thing.to_proto().spec
    for holder in (spec, *getattr(spec, "features", ())):
        if hasattr(holder, "batch_source"):
            holder.batch_source.ClearField("meta")
    return str(spec.SerializeToString(deterministic=True).hex())


def _registered(registry: Path) -> str | None:
    """The digest of the registered definitions; None when there is nothing readable."""
    from feast.protos.feast.core.Registry_pb2 import Registry
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

    try:
        content = Registry.FromString(registry.read_bytes())
    except (FileNotFoundError, DecodeError):
        return None
    return next(
        (str(p.spec.tags[_DIGEST]) for p in content.projects if _DIGEST in p.spec.tags), None
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer of a folder at a time: reading what is online and writing over it is one step."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
