"""Features as served beside the point-in-time join offline, value by value.

The same questions are asked of the feature tables: the same keys, as of the same event timestamps.
A key that a client made up finds nothing there, as it found nothing online.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.lifecycle.columns import Kind, keyed
from evergreen.lifecycle.contracts import Feature, FeatureSkew, Partition
from evergreen.lifecycle.definitions import Definitions
from evergreen.lifecycle.features import join
from evergreen.lifecycle.tables import FeatureTables

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]

_WHOLE = re.compile(r"(-?\d{1,19})(\.0+)?")


def to_compare(
    declaration: Declaration, served: pd.DataFrame, definitions: Definitions
) -> pd.DataFrame:
    """The answers for which the online store was asked; a seeded sample where they are many.

    :param served: as `evergreen.lifecycle.servedlog.read_served` gives it.
    :returns: in the order of ``served``, with a ``row_id`` of their own from 0 on.
    """
    sample = declaration.serving.skew.sample
    asked = served[_looked_up(served, definitions.features).any(axis=1)]
    if len(asked) > sample:
        asked = asked.sample(sample, random_state=declaration.training.seed).sort_index()
    return asked.assign(row_id=range(len(asked))).reset_index(drop=True)


def compare_features(
    tables: FeatureTables, partition: Partition, asked: pd.DataFrame
) -> tuple[FeatureSkew, ...]:
    """What the online store gave beside what the feature tables give, for each feature.

    :param asked: answers to rows of the partition's time, as `to_compare` gives them.
    :returns: of features that some answer looked up; one that fewer than ``min_rows`` did
        doesn't violate.
    :raises DeclarationError: when a feature function returns what can't be used.
    """
    skew, definitions = tables.declaration.serving.skew, tables.definitions
    offline, looked_up = _offline(tables, partition, asked), _looked_up(asked, definitions.features)
    found = []
    for feature in definitions.features:
        rows = looked_up.get(feature.name)
        if rows is None or not rows.any():
            continue
        name, compared = feature.name, int(rows.sum())
        differs, one_sided = differing(
            asked.loc[rows, name], offline.loc[rows, name], feature.type, skew.tolerance
        )
        share = int(differs.sum()) / compared
        found.append(
            FeatureSkew(
                feature=name,
                mismatches=int(differs.sum()),
                missing=int(one_sided.sum()),
                share=share,
                violates=compared >= skew.min_rows and share > skew.mismatch_at_most,
            )
        )
    return tuple(found)


def differing(
    served: pd.Series, offline: pd.Series, kind: Kind, tolerance: float
) -> tuple[Array, Array]:
    """Which values differ, and which are there on one side only; each shape (n,), bool.

    Numbers a and b are the same when abs(a - b) <= tolerance * max(abs(a), abs(b)), which is
    symmetric, and exact for 0; infinities only when equal. Text is the same when it is equal,
    two missing values are. What is there on one side only differs.
    """
    import numpy as np
    import pandas as pd

    one, other = served.notna().to_numpy(), offline.notna().to_numpy()
    if kind == "number":
        a = pd.to_numeric(served, errors="coerce").to_numpy("float64", na_value=np.nan)
        b = pd.to_numeric(offline, errors="coerce").to_numpy("float64", na_value=np.nan)
        with np.errstate(over="ignore", invalid="ignore"):  # they compare as they should
            near = np.abs(a - b) <= tolerance * np.maximum(np.abs(a), np.abs(b))
        same = (a == b) | (near & np.isfinite(a) & np.isfinite(b))
    else:
        same = served.astype(str).to_numpy() == offline.astype(str).to_numpy()
    return ~((one & other & same) | (~one & ~other)), one != other


def _looked_up(served: pd.DataFrame, features: Sequence[Feature]) -> pd.DataFrame:
    """Which features of each answer came from the online store: one boolean column a feature."""
    import pandas as pd

    named = served["online"].where(served["route"] == "predict", "").fillna("")
    lists = {text: text.split(",") for text in named.unique()}
    columns = {
        f.name: named.isin([text for text, names in lists.items() if f.name in names])
        for f in features
        if f.name in served
    }
    return pd.DataFrame(columns, index=served.index, dtype=bool)


def _offline(tables: FeatureTables, partition: Partition, asked: pd.DataFrame) -> pd.DataFrame:
    """The features of the same questions from feature tables, in the order of ``asked``."""
    import pandas as pd

    definitions = tables.definitions
    uris = {
        view: [tables.build(view, p) for p in tables.covering(partition, definitions.reach(view))]
        for view in definitions.views
    }
    keys = {
        name: _keys(asked[name], feature.type) for name, feature in definitions.asked_by().items()
    }
    questions = pd.DataFrame({**asked[["row_id", "event_timestamp"]], **keys})
    return join(
        definitions,
        tables.declaration.name,
        questions,
        uris,
        tables.store,
        feature_store=tables.feature_store,
    )


def _keys(values: pd.Series, kind: Kind) -> pd.Series:
    """Logged entities as join keys; text where whole numbers belong joins nothing."""
    import pandas as pd

    try:
        return keyed(values, kind)
    except (TypeError, ValueError):  # a client's text made text of the log's whole column
        return pd.Series([_whole(value) for value in values], values.index, dtype="Int64")


def _whole(value: Any) -> int | None:
    """A whole number of 64 bits, also from text.

    >>> _whole("7"), _whole(7.0), _whole("seven"), _whole(None)
    (7, 7, None, None)
    """
    found = _WHOLE.fullmatch(str(value))
    number = int(found[1]) if found else None
    return number if number is not None and abs(number) < 2**63 else None
