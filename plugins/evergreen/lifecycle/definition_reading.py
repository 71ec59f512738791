"""Read feature definitions: from the feature module of a model's folder, or made for a model.

A module holds Feast objects, ``LOOKBACK`` and a ``prepare_<view>(raw)`` for each view. A model
without one gets a single view that hands every other column of its own table through.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from evergreen.declaration import FILE_NAME, Declaration
from evergreen.lifecycle.columns import kind_of_type
from evergreen.lifecycle.definitions import OWN_ROW, TIMESTAMP, Definitions, check_names, refusal
from evergreen.lifecycle.feast_import import import_feast
from evergreen.lifecycle.modules import load_module, module_digest
from evergreen.lifecycle.rows import MAIN, required_columns, time_columns
from evergreen.store import digest_of

if TYPE_CHECKING:
    import pandas as pd

    from evergreen.declaration.schema import Features


def load(declaration: Declaration, columns: Mapping[str, str]) -> Definitions:
    """The definitions of a model.

    :param columns: name → Arrow type of the model's own table, for a model without a module.
    :raises DeclarationError: naming the file, what was found there and what is allowed.
    """
    if declaration.features is None:
        return _default(declaration, columns)
    return _declared(declaration, declaration.features)


def lookback(declaration: Declaration) -> timedelta:
    """How much raw history before its window a snapshot must hold as context.

    :raises DeclarationError: as `load`.
    """
    section = declaration.features
    return _declared(declaration, section).history if section else timedelta(0)


def _declared(declaration: Declaration, section: Features) -> Definitions:
    import_feast()
    from feast import Entity, FeatureService, FeatureView

    module = load_module(declaration, section.module)
    file = declaration.folder / f"{section.module}.py"
    wanted = section.service
    services = {
        found.name: found for found in vars(module).values() if isinstance(found, FeatureService)
    }
    views = {found.name: found for found in vars(module).values() if isinstance(found, FeatureView)}
    entities = {found.name: found for found in vars(module).values() if isinstance(found, Entity)}
    if wanted not in services:
        raise refusal(file, f"no FeatureService named {wanted}", f"found {_listed(services)}")
    chosen = {}
    for projection in services[wanted].feature_view_projections:
        if projection.name not in views:
            allowed = f"a module-level FeatureView; found {_listed(views)}"
            raise refusal(file, f"the service {wanted} takes {projection.name}", allowed)
        chosen[projection.name] = _view(file, views[projection.name], entities)
    used = {name for view in chosen.values() for name in view.entities}
    definitions = Definitions(
        file=file,
        entities={e.join_key: _entity(file, e) for name, e in entities.items() if name in used},
        views=chosen,
        service=services[wanted],
        prepare={view: _function(file, module, f"prepare_{view}") for view in chosen},
        requests=getattr(module, "prepare_requests", None),
        lookback=_lookback(file, module),
        digest=module_digest(module),
    )
    check_names(definitions, declaration)
    return definitions


def _default(declaration: Declaration, columns: Mapping[str, str]) -> Definitions:
    """One view over the model's own table, in which each row answers exactly its own question."""
    import_feast()
    from feast import Entity, FeatureService, FeatureView, Field, FileSource
    from feast.types import Float64, String
    from feast.value_type import ValueType

    data = declaration.data
    taken = {*required_columns(declaration, MAIN), TIMESTAMP}
    kinds = {name: kind_of_type(kind) for name, kind in columns.items() if name not in taken}
    file = declaration.folder / FILE_NAME
    if not kinds:
        raise refusal(file, "no column is left to be a feature", f"found {_listed(columns)}")
    entities = {
        key: Entity(
            name=key,
            join_keys=[key],
            value_type=ValueType.INT64
            if kind_of_type(columns[key]) == "number"
            else ValueType.STRING,
        )
        for key in data.entities
    }
    view = FeatureView(
        name=declaration.name,
        entities=list(entities.values()),
        ttl=OWN_ROW,
        schema=[
            Field(name=n, dtype=Float64 if k == "number" else String) for n, k in kinds.items()
        ],
        source=FileSource(path=f"{declaration.name}.parquet", timestamp_field=TIMESTAMP),
    )
    time = time_columns(declaration, MAIN)[0]

    def prepare(raw: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        names = [time, *entities, *kinds]
        return raw[MAIN].reindex(columns=names).rename(columns={time: TIMESTAMP})

    definitions = Definitions(
        file=file,
        entities=entities,
        views={view.name: view},
        service=FeatureService(name=declaration.name, features=[view]),
        prepare={view.name: prepare},
        requests=None,
        lookback=timedelta(0),
        digest=digest_of(
            {"features": kinds, "entities": {k: str(e.value_type) for k, e in entities.items()}}
        ),
    )
    check_names(definitions, declaration)
    return definitions


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"


def _view(file: Path, view: Any, entities: Mapping[str, Any]) -> Any:
    from feast.types import Float64, String

    unknown = [name for name in view.entities if name not in entities]
    if unknown:
        raise refusal(
            file,
            f"view {view.name} is keyed by {', '.join(unknown)}",
            f"Entities are {_listed(entities)}",
        )
    if view.batch_source.timestamp_field != TIMESTAMP:
        found = f"view {view.name} has the timestamp_field {view.batch_source.timestamp_field!r}"
        raise refusal(file, found, f"allowed is {TIMESTAMP}")
    if not view.features:
        raise refusal(file, f"view {view.name} has no schema", "list its Fields")
    for field in view.features:
        if field.dtype not in (Float64, String):
            found = f"{view.name}.{field.name} is {field.dtype}"
            raise refusal(
                file, found, "allowed are Float64 (whole numbers and booleans too) and String"
            )
    return view


def _entity(file: Path, entity: Any) -> Any:
    from feast.value_type import ValueType

    if entity.value_type not in (ValueType.STRING, ValueType.INT64):
        found = f"entity {entity.name} has the value_type {entity.value_type.name}"
        raise refusal(file, found, "allowed are ValueType.STRING and ValueType.INT64")
    return entity


def _function(file: Path, module: ModuleType, name: str) -> Any:
    function = getattr(module, name, None)
    if not callable(function):
        there = [n for n in vars(module) if n.startswith("prepare_")]
        raise refusal(
            file, f"no function {name}(raw) -> DataFrame", f"found {', '.join(there) or 'none'}"
        )
    return function


def _lookback(file: Path, module: ModuleType) -> timedelta:
    found = getattr(module, "LOOKBACK", None)
    if not isinstance(found, timedelta) or found < timedelta(0):
        raise refusal(
            file, f"LOOKBACK is {found!r}", "allowed is a timedelta, zero if none is read"
        )
    return found
