"""Parts: one partition's rows with their features, joined point in time, computed once.

A part is named by what it was made from and holds, in its own footer, which feature tables it
joined. Nothing in it depends on when it is read: a label stands there whenever the raw row has it.
Where labels land in a table of their own none stands there, so that a label's arrival doesn't make
a part anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError
from evergreen.lifecycle.columns import keyed, kind_of, kind_of_type, missing, of_its_kind, typed
from evergreen.lifecycle.contracts import Feature, FeaturePart, Partition
from evergreen.lifecycle.definitions import RESERVED, Definitions
from evergreen.lifecycle.features import join
from evergreen.lifecycle.rows import label_timestamps, labels_apart
from evergreen.lifecycle.sets import Footer, footer, put_table
from evergreen.lifecycle.tables import FeatureTables
from evergreen.store import digest_of

if TYPE_CHECKING:
    import pandas as pd

    Columns = dict[str, pd.Series]


@dataclass(frozen=True)
class Made:
    """A part, what its file says of itself, and whether it was there before."""

    part: FeaturePart
    footer: Footer
    reused: bool


def make_part(tables: FeatureTables, partition: Partition) -> Made:
    """The part of a partition, computed if it isn't there.

    :raises DeclarationError: when a feature function returns what can't be used.
    :raises JoinError: when the join lost or doubled a row.
    """
    views = tables.definitions.views
    joined = {view: _covering(tables, view, partition) for view in views}
    names = {view: [tables.name(view, p) for p in joined[view]] for view in views}
    digest = digest_of({**_recipe(tables, partition), "tables": names})
    name = f"tables/parts/{tables.declaration.name}/{partition.key}-{digest[:16]}.parquet"
    reused = tables.store.exists(name)
    if not reused:
        uris = {view: [tables.build(view, p) for p in joined[view]] for view in views}
        rows, requests = _rows(tables, partition, uris)
        note = {"tables": names, "end": partition.end.isoformat(), "requests": requests}
        put_table(tables.store, name, rows, note)
    uri = tables.store.uri(name)
    facts = footer(tables.store, uri)
    part = FeaturePart(
        partition=partition.key,
        start=partition.start,
        end=partition.end,
        digest=digest,
        uri=uri,
        rows=facts.rows,
    )
    return Made(part, facts, reused)


def _covering(tables: FeatureTables, view: str, partition: Partition) -> list[Partition]:
    return tables.covering(partition, tables.definitions.reach(view))


def _recipe(tables: FeatureTables, partition: Partition) -> dict[str, Any]:
    """What a part depends on beside its feature tables."""
    declared = tables.declaration
    return {
        **tables.recipe(partition, timedelta(0)),
        "entities": declared.data.entities,
        "label": None if labels_apart(declared) else declared.data.label.model_dump(mode="json"),
        "kept": _kept(declared),
        "features": [feature.to_dict() for feature in tables.definitions.features],
    }


def _kept(declaration: Declaration) -> list[str]:
    """Columns that evaluation or the gate look at, whether or not they are features."""
    fairness = [rule.column for rule in declaration.gate.fairness]
    return list(dict.fromkeys([*declaration.evaluation.slices, *fairness]))


def _rows(
    tables: FeatureTables, partition: Partition, uris: Mapping[str, list[str]]
) -> tuple[pd.DataFrame, list[str]]:
    """Every usable raw row once, in its order, and the names of the request features."""
    import pandas as pd

    declared, definitions, raw = tables.declaration, tables.definitions, tables.rows(partition)
    entities = _entities(declared, definitions, raw)
    columns: Columns = {
        "row_id": raw.index.to_series(),
        "event_timestamp": raw[declared.data.event_timestamp],
        "label_timestamp": label_timestamps(declared, raw),
        "label": _label(declared, raw),
        **entities,
    }
    asking = ["row_id", "event_timestamp", *definitions.asked_by()]
    questions = pd.DataFrame({name: columns[name] for name in asking})
    joined = join(
        definitions,
        declared.name,
        questions,
        uris,
        tables.store,
        feature_store=tables.feature_store,
    )
    answers = joined.set_index("row_id").reindex(raw.index)
    columns |= {f.name: typed(answers[f.name], f.type) for f in definitions.features}
    requests = _requests(tables, partition, raw)
    columns |= requests
    columns |= _slices(declared, raw, columns)
    return pd.DataFrame(columns), list(requests)


def _label(declared: Declaration, raw: pd.DataFrame) -> pd.Series:
    import pandas as pd

    if labels_apart(declared):
        return pd.Series(float("nan"), raw.index)
    return of_its_kind(raw[declared.data.label.column])


def _entities(declared: Declaration, definitions: Definitions, raw: pd.DataFrame) -> Columns:
    """The entities as the views' keys, so that both sides of the join have one type."""
    asked, typed_entities = definitions.asked_by(), {}
    for name in declared.data.entities:
        kind = asked[name].type if name in asked else kind_of(raw[name])
        try:
            typed_entities[name] = keyed(raw[name], kind)
        except (TypeError, ValueError) as error:
            raise DeclarationError(
                f"{definitions.file}: the entity {name} holds {raw[name].dtype}, which is no {kind} key: "
                f"{error}; allowed are text (ValueType.STRING) and whole numbers (ValueType.INT64)"
            ) from error
    return typed_entities


def _requests(tables: FeatureTables, partition: Partition, raw: pd.DataFrame) -> Columns:
    """What the questions bring along, each column as its kind.

    One that has an entity's name is that entity, as the model sees it.
    """
    import pandas as pd

    definitions = tables.definitions
    if definitions.requests is None:
        return {}
    made: Any = definitions.requests(tables.raw(partition, timedelta(0)))
    taken = RESERVED | {feature.name for feature in definitions.features}
    if not isinstance(made, pd.DataFrame):
        found = f"returned {type(made).__name__}; allowed is a pandas DataFrame"
    elif not made.index.equals(raw.index):
        found = f"returned {len(made):,} rows for {len(raw):,}; allowed is one each, with the same index"
    elif clash := sorted(taken & set(made)):
        found = f"returned {', '.join(clash)}; allowed are names that are not taken by views or {', '.join(sorted(RESERVED))}"
    else:
        return {str(name): of_its_kind(values) for name, values in made.items()}
    raise DeclarationError(f"{definitions.file}: prepare_requests {found}")


def _slices(declared: Declaration, raw: pd.DataFrame, there: Mapping[str, Any]) -> Columns:
    """The columns to slice by that are not in the part for another reason."""
    names = [name for name in _kept(declared) if name not in there]
    if absent := missing(raw, names):
        raise DeclarationError(
            f"{declared.name}: evaluation.slices or gate.fairness names {', '.join(absent)}; allowed "
            f"are features and columns of its table: {', '.join(map(str, raw.columns))}"
        )
    return {name: of_its_kind(raw[name]) for name in names}


def request_features(definitions: Definitions, made: list[Made]) -> tuple[Feature, ...]:
    """The request features of parts; of one type in all of them.

    :raises DeclarationError: when one is a number here and text there.
    """
    kinds: dict[str, dict[str, str]] = {}
    for each in made:
        for name in each.footer.note["requests"]:
            kind = kind_of_type(each.footer.columns[name])
            kinds.setdefault(name, {}).setdefault(kind, each.part.partition)
    for name, where in kinds.items():
        if len(where) > 1:
            found = " and ".join(f"{kind} in {key}" for kind, key in where.items())
            raise DeclarationError(
                f"{definitions.file}: prepare_requests returned {name} as {found}; allowed is one "
                "type: cast it there"
            )
    return tuple(
        Feature.model_validate({"name": n, "type": next(iter(w))}) for n, w in kinds.items()
    )
