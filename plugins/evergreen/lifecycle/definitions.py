"""Feature definitions: what a model's features are, in Feast's own words.

They come from the model's feature module, or are made for it when it has none
(`evergreen.lifecycle.definition_reading`); the rest of Evergreen sees one `Definitions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError
from evergreen.lifecycle.contracts import Feature

if TYPE_CHECKING:
    import pandas as pd

    Prepare = Callable[[Mapping[str, pd.DataFrame]], pd.DataFrame]

TIMESTAMP = "event_timestamp"
RESERVED = frozenset({"row_id", TIMESTAMP, "label_timestamp", "label", "partition"})
OWN_ROW = timedelta(microseconds=1)
"""The shortest time to live that Feast knows (zero is for ever): a row answers only itself."""


@dataclass(frozen=True)
class Definitions:
    """What a model's features are, and how they come from raw rows.

    :ivar file: where they are written; errors name it.
    :ivar entities: Feast entities by join key.
    :ivar views: Feast feature views by name, in the service's order.
    :ivar service: the Feast feature service: the features the model takes.
    :ivar prepare: for each view, raw rows → its feature table.
    :ivar requests: raw rows → the features that a question itself brings along.
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

    def keys(self, view: str) -> tuple[Feature, ...]:
        """The join keys of a view; a number is a whole one."""
        names = self.views[view].entities
        return tuple(_key(e) for e in self.entities.values() if e.name in names)

    def columns(self, view: str) -> tuple[Feature, ...]:
        """The features of a view, whether or not the service takes them all."""
        return tuple(_feature(field) for field in self.views[view].features)

    def asked_by(self) -> dict[str, Feature]:
        """The columns of a question that the views are joined by, and which key each is."""
        asked = {}
        for projection in self.service.feature_view_projections:
            for key in self.keys(projection.name):
                asked[projection.join_key_map.get(key.name, key.name)] = key
        return asked

    def reach(self, view: str) -> timedelta:
        """How far before a question its answer in this view may lie."""
        ttl: timedelta = self.views[view].ttl
        return timedelta(0) if ttl == OWN_ROW else ttl or self.lookback

    @property
    def history(self) -> timedelta:
        """How much raw history before a window makes its first rows complete."""
        return self.lookback + max(map(self.reach, self.views))


def _feature(field: Any) -> Feature:
    from feast.types import String

    return Feature(name=field.name, type="string" if field.dtype == String else "number")


def _key(entity: Any) -> Feature:
    from feast.value_type import ValueType

    return Feature(
        name=entity.join_key, type="string" if entity.value_type is ValueType.STRING else "number"
    )


def refusal(file: Path, found: str, allowed: str) -> DeclarationError:
    """An error that names the file, what was found and what is allowed."""
    return DeclarationError(f"{file}: {found}; {allowed}")


def check_names(definitions: Definitions, declaration: Declaration) -> None:
    """Refuse names that stand for two things, and keys that a question doesn't have.

    :raises DeclarationError: naming them.
    """
    names = [feature.name for feature in definitions.features]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise refusal(definitions.file, f"the service takes {', '.join(twice)} twice", "rename one")
    clash = sorted(set(names) & (RESERVED | set(declaration.data.entities)))
    if clash:
        allowed = f"names but {', '.join(sorted(RESERVED))} and the entities"
        raise refusal(
            definitions.file, f"a feature is named {', '.join(clash)}", f"allowed are all {allowed}"
        )
    strangers = sorted(set(definitions.asked_by()) - set(declaration.data.entities))
    if strangers:
        found = f"views are joined by {', '.join(strangers)}"
        raise refusal(
            definitions.file,
            found,
            f"data.entities declares {', '.join(declaration.data.entities)}",
        )
