"""Feature tables as Feast's data sources: named for the offline store that reads them.

Local stores read copies; Spark reads the store's own files, by the paths that Hadoop knows; Athena
and Redshift read external tables over the views' folders, narrowed to the files that are meant, since
a folder also holds what was computed before. Whoever runs such a store makes the external tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from evergreen.errors import DeclarationError, JoinError
from evergreen.lifecycle.definitions import TIMESTAMP, Definitions
from evergreen.lifecycle.featurestore import SPARK, Profile

if TYPE_CHECKING:
    import pandas as pd

#: Where Redshift's external tables are; Athena's are in the profile's database.
REDSHIFT_SCHEMA = "evergreen"
#: Offline stores that read external tables.
EXTERNAL = ("athena", "redshift")
_SECOND = timedelta(seconds=1)


def table_folder(model: str, view: str) -> str:
    """Where a view's feature tables are, below the store's root."""
    return f"tables/features/{model}/{view}"


def external_table(model: str, view: str) -> str:
    """The external table over a view's folder."""
    return f"{model}__{view}"


def source(profile: Profile, model: str, view: str, uris: Sequence[str], *, every: bool) -> Any:
    """A view's data source.

    :param uris: its feature tables; or one with a wildcard.
    :param every: whether all that an external table holds is meant.
    :raises DeclarationError: when the offline store can't read such URIs.
    """
    from feast import FileSource

    name, offline = f"{view}_tables", profile.offline
    if offline in EXTERNAL:
        return _external(profile, model, view, None if every else uris)
    if offline == SPARK:
        from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

        path = hadoop_path(uris)
        return SparkSource(name=name, path=path, file_format="parquet", timestamp_field=TIMESTAMP)
    return FileSource(name=name, path=uris[0], timestamp_field=TIMESTAMP)


def hadoop_path(uris: Sequence[str]) -> str:
    """Files of one folder as one path of Hadoop's: braces are its alternatives, ``s3a`` is S3.

    :raises ValueError: for files of several folders.
    """
    if len(uris) == 1:
        return _hadoop(uris[0])
    folders = {uri.rpartition("/")[0] for uri in uris}
    if len(folders) != 1:
        raise ValueError(f"a view's tables are in one folder, not in {', '.join(sorted(folders))}")
    names = ",".join(uri.rpartition("/")[2] for uri in uris)
    return f"{_hadoop(folders.pop())}/{{{names}}}"


def objects(definitions: Definitions, sources: Mapping[str, Any]) -> list[Any]:
    """New Feast objects over the real tables: applying alters objects, and the model's are shared.

    :param sources: view → its data source.
    """
    from feast import FeatureService, FeatureView, Field
    from feast.types import from_value_type

    entities = {entity.name: entity for entity in definitions.entities.values()}
    views = []
    for name, view in definitions.views.items():
        own = [entities[entity] for entity in view.entities]
        keys = [Field(name=e.join_key, dtype=from_value_type(e.value_type)) for e in own]
        views.append(
            FeatureView(
                name=name,
                entities=own,
                ttl=view.ttl,
                schema=[*keys, *view.features],
                source=sources[name],
                description=view.description,
                tags=dict(view.tags),
                owner=view.owner,
            )
        )
    service = FeatureService.from_proto(definitions.service.to_proto())
    return [*entities.values(), *views, service]


def said(thing: Any) -> str:
    """What an object defines, without the times at which Feast made it."""
    spec = thing.to_proto().spec
    for holder in (spec, *getattr(spec, "features", ())):
        if hasattr(holder, "batch_source"):
            holder.batch_source.ClearField("meta")
    return str(spec.SerializeToString(deterministic=True).hex())


def check_joinable(profile: Profile, definitions: Definitions, rows: pd.DataFrame) -> None:
    """Refuse what Athena's and Redshift's joins answer wrongly without a word.

    Feast writes both as SQL that counts a time to live in whole seconds (none of them is for ever),
    and that knows a question by one text of its keys and time.

    :raises DeclarationError: when a view's time to live isn't whole seconds.
    :raises JoinError: when two questions have the same text.
    """
    if profile.offline not in EXTERNAL:
        return
    for view, definition in definitions.views.items():
        if definition.ttl and definition.ttl % _SECOND:
            raise DeclarationError(
                f"{definitions.file}: view {view} has the ttl {definition.ttl}; on {profile.offline} "
                "allowed are whole seconds. A model without a feature module needs another offline "
                "store: there each row answers only itself."
            )
        columns = [key.name for key in definitions.keys(view)]
        asked = rows[[*columns, TIMESTAMP]].drop_duplicates().astype(str)
        if (twice := asked.agg("".join, axis=1).duplicated()).any():
            first = asked[twice].iloc[0].to_dict()
            raise JoinError(
                f"view {view}: {int(twice.sum()):,} questions have keys that {profile.offline} can't "
                f"tell from others' once they stand side by side, first {first}. Use another offline "
                "store, or a key of one column."
            )


def _hadoop(uri: str) -> str:
    return f"s3a://{uri.removeprefix('s3://')}" if uri.startswith("s3://") else uri


def _external(profile: Profile, model: str, view: str, uris: Sequence[str] | None) -> Any:
    """The external table over a view's folder; ``$path`` is the file that a row comes from."""
    name, table = f"{view}_tables", external_table(model, view)
    if outside := [uri for uri in uris or () if not uri.startswith("s3://")]:
        raise DeclarationError(
            f"{profile.file}: {profile.offline} reads tables on s3:// only; the store has "
            f"{outside[0]}. Put the store on S3, or use another offline store."
        )
    store = profile.sections["offline_store"]
    schema = store["database"] if profile.offline == "athena" else REDSHIFT_SCHEMA
    files = ", ".join(f"'{_quoted(uri)}'" for uri in uris or ())
    # Names are identifiers, files our own; Feast takes text and nothing to bind.
    query = f'SELECT * FROM "{schema}"."{table}" WHERE "$path" IN ({files})'  # noqa: S608 - see above
    whole: dict[str, Any] = {"table": table} if uris is None else {"query": query}
    if profile.offline == "athena":
        from feast.infra.offline_stores.contrib.athena_offline_store.athena_source import (
            AthenaSource,
        )

        return AthenaSource(
            name=name,
            database=schema,
            data_source=store["data_source"],
            timestamp_field=TIMESTAMP,
            **whole,
        )
    from feast import RedshiftSource

    if uris is None:
        whole["schema"] = schema
    return RedshiftSource(name=name, timestamp_field=TIMESTAMP, **whole)


def _quoted(text: str) -> str:
    return text.replace("'", "''")
