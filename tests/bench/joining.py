"""The point-in-time join of a month of flights: our ASOF store beside Feast's own DuckDB store.

Both answer the same questions from the same three feature tables, each in a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from evergreen.declaration import read_declaration
from evergreen.store import Store
from tests.bench.children import in_child
from tests.bench.figures import Figure
from tests.bench.flights import FOLDER, MODEL_FOLDER, MONTHS, month

if TYPE_CHECKING:
    import pandas as pd

ROUNDS = 3
#: Seconds that Feast's own store gets.
PATIENCE = 60.0
ANSWERS = FOLDER / "answers"


def measure() -> Iterator[Figure]:
    """Seconds of each, and their ratio."""
    ANSWERS.mkdir()
    ours = in_child(lambda: min(join("ours", None) for _ in range(ROUNDS)))
    yield Figure("ASOF store", ours, "s", detail=f"best of {ROUNDS}; with Feast's own set-up")
    theirs = in_child(lambda: join("theirs", "duckdb"), PATIENCE)
    if theirs is None:
        yield Figure("Feast's own at least", PATIENCE / ours, "×", detail="stopped after a minute")
        return
    yield Figure("Feast's DuckDB store", theirs, "s", detail=in_child(compare))
    yield Figure("ASOF is faster by", theirs / ours, "×")


def join(name: str, offline_store: str | None) -> float:
    """Join a month with a store, keep the answers, return the seconds."""
    from evergreen.lifecycle import features

    profile = None
    if offline_store:
        profile = ANSWERS / f"{name}.yaml"
        profile.write_text(f"offline_store: {{type: {offline_store}}}\n")
    declaration = read_declaration(MODEL_FOLDER)
    definitions, raw = features.load(declaration, {}), month(MONTHS[0])
    store = Store(f"file://{ANSWERS}/{name}-store")
    tables = {
        view: [store.put_table(f"tables/{view}.parquet", prepare(raw))]
        for view, prepare in definitions.prepare.items()
    }
    flights = raw["flights"].rename_axis("row_id").reset_index()
    questions = flights[["row_id", "event_timestamp", *definitions.asked_by()]]
    began = time.perf_counter()
    answers = features.join(
        definitions, declaration.name, questions, tables, store, feature_store=profile
    )
    seconds = time.perf_counter() - began
    answers.to_parquet(ANSWERS / f"{name}.parquet")
    return seconds


def compare() -> str:
    """Whether both stores said the same."""
    import pandas as pd

    ours, theirs = (pd.read_parquet(ANSWERS / f"{name}.parquet") for name in ("ours", "theirs"))
    unequal = int(_differs(ours, theirs[ours.columns]).sum().sum())
    return f"{len(ours):,} rows, {'same answers' if not unequal else f'{unequal:,} differ'}"


def _differs(ours: pd.DataFrame, theirs: pd.DataFrame) -> Any:
    return ~(ours.eq(theirs) | (ours.isna() & theirs.isna()))
