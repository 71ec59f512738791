"""Feature definitions: the Feast objects of a model's folder, or the ones made for it.

A model with a feature module says in Feast's own words what its features are, and in plain
functions how raw rows become them. A model without one gets a single view that hands every other
column of its own table through. Either way the rest of Evergreen sees one `Definitions`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.rows import MAIN
from evergreen.store import digest_of

if TYPE_CHECKING:
    import pandas as pd

    Prepare = Callable[[Mapping[str, pd.DataFrame]], pd.DataFrame]

TIMESTAMP = "event_timestamp"
RESERVED = frozenset({"row_id", TIMESTAMP, "label_timestamp", "label", "partition"})
_OWN_ROW = timedelta(microseconds=1)
"""The shortest time to live that Feast knows (zero means for ever): an entity's own row only."""


@dataclass(frozen=True)
class Definitions:
    """What a model's features are, and how they come from raw rows.

    :ivar file: where they are written; errors name it.
    :ivar entities: Feast entities by join key.
    :ivar views: Feast feature views by name, in the service's order.
    :ivar service: the Feast feature service whose features the model takes.
    :ivar prepare: for each view, raw rows → its feature table.
    :ivar requests: raw rows → features that the question itself brings along.
    :ivar lookback: how much earlier raw history a partition's feature tables read.
    :ivar digest: of the code that makes the tables.
    """

    file: Path
    entities: Mapping[str, Any]
    views: Mapping[str, Any]
    service: Any
    prepare: Mapping[str, Prepare]
    requests: Prepare | None
    lookback: timedelta
    digest: str

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features that the service joins, in its order."""
        chosen = self.service.feature_view_projections
        return tuple(_feature(field) for projection in chosen for field in projection.features)

    def keys(self, view: str) -> tuple[str, ...]:
        """The join keys of a view."""
        names = self.views[view].entities
        return tuple(key for key, entity in self.entities.items() if entity.name in names)

    def columns(self, view: str) -> tuple[Feature, ...]:
        """The features of a view, whether or not the service takes them all."""
        return tuple(_feature(field) for field in self.views[view].features)

    def reach(self, view: str) -> timedelta:
        """How far before a question its answer in this view may lie."""
        if self.views[view].ttl == _OWN_ROW:
            return timedelta(0)
        return self.views[view].ttl or self.lookback

    @property
    def history(self) -> timedelta:
        """How much raw history before a window makes its first rows complete."""
        return self.lookback + max(map(self.reach, self.views))


def load(declaration: Declaration, columns: Mapping[str, str]) -> Definitions:
    """The definitions of a model.

    :param columns: name → type of the model's own table; read when there is no feature module.
    :raises DeclarationError: naming the file, what was found there and what is allowed.
    """
    return _default(declaration, columns) if declaration.features is None else _declared(declaration)


def history(declaration: Declaration) -> timedelta:
    """How much raw history before a window a snapshot must bring along as its context."""
    return timedelta(0) if declaration.features is None else _declared(declaration).history


def code_digest(declaration: Declaration) -> str:
    """The sha256 of everything a model's folder says: its Python, YAML and JSON files."""
    return _digest_of_files(declaration.folder, (".py", ".yaml", ".json"))


def _digest_of_files(folder: Path, endings: tuple[str, ...]) -> str:
    names = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.suffix in endings}
    return digest_of({n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in names.items()})


def _feature(field: Any) -> Feature:
    return Feature(name=field.name, type="string" if field.dtype.name == "STRING" else "number")


class _Source(SourceFileLoader):
    """Reads the source as it is now: bytecode beside it may be a second older, and the folder
    may be read-only."""

    def path_stats(self, path: str) -> Mapping[str, Any]:  # type: ignore[override]
        raise OSError


def load_module(declaration: Declaration, name: str) -> ModuleType:
    """A module of a model's folder, by path, under a name of its own.

    The name holds a digest of the folder's code, so a changed folder is read anew and two models
    can't meet. The module may import its neighbours relatively (``from .windows import mean``);
    nothing is put on ``sys.path``.

    :raises DeclarationError: when it is missing, or fails while it is loaded.
    """
    folder = declaration.folder
    file = folder / f"{name}.py"
    if not file.is_file():
        there = ", ".join(sorted(p.name for p in folder.glob("*.py"))) or "no Python file"
        raise DeclarationError(f"{file}: no such file, though it is declared. The folder has {there}.")
    digest = _digest_of_files(folder, (".py",))
    full = f"evergreen_models.{declaration.name}.{name}.{digest[:16]}"
    if full in sys.modules:
        return sys.modules[full]
    spec = spec_from_file_location(
        full, file, loader=_Source(full, str(file)), submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None  # a path and a loader were given
    module = sys.modules[full] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[full]
        raise DeclarationError(f"{file}: {type(error).__name__} while loading it: {error}") from error
    return module


def _digest_of_module(module: ModuleType) -> str:
    """The sha256 of a module's file and of the neighbours that it imported."""
    own = module.__name__
    files = [m.__file__ for n, m in sys.modules.items() if n == own or n.startswith(f"{own}.")]
    return digest_of(sorted(hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in files if f))


def _declared(declaration: Declaration) -> Definitions:
    from feast import Entity, FeatureService, FeatureView

    from evergreen.lifecycle.definition_rules import check, named

    assert declaration.features is not None  # `load` and `history` ask first
    module = load_module(declaration, declaration.features.module)
    file = declaration.folder / f"{declaration.features.module}.py"
    entities = named(module, Entity)
    views = named(module, FeatureView)
    service = named(module, FeatureService).get(declaration.features.service)
    check.service(file, module, declaration.features.service)
    assert service is not None
    chosen = check.views(file, views, service)
    definitions = Definitions(
        file=file,
        entities=check.entities(file, entities, chosen),
        views=chosen,
        service=service,
        prepare={view: check.function(file, module, f"prepare_{view}") for view in chosen},
        requests=getattr(module, "prepare_requests", None),
        lookback=check.lookback(file, module),
        digest=_digest_of_module(module),
    )
    check.names(file, definitions, declaration)
    return definitions


def _default(declaration: Declaration, columns: Mapping[str, str]) -> Definitions:
    """One view over the model's own table: each row answers exactly its own question."""
    raise NotImplementedError
