"""A version that went live after another, as a bake finds them; each test has a ledger of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evergreen.declaration import Declaration
from evergreen.foreground import Foreground
from evergreen.ledger import Ledger, records
from evergreen.ledger.tables import LabelRow, PromotionRow, QuarantineRow, ScoreRow
from evergreen.lifecycle import registry
from evergreen.lifecycle.contracts import Origin
from evergreen.lifecycle.fitted import FittedModel, load_fitted
from evergreen.workspace import Workspace
from tests.builders import declare
from tests.lifelike import SMALL, Life

NOW = datetime(2013, 2, 1, 12, tzinfo=UTC)
WEAK = {**SMALL["training"], "parameters": {"C": 1e-3}}
BAKE = {"watch": "10m", "every": "1m", "requests": 20, "rows": 100}


@dataclass(frozen=True)
class Lived:
    """Version 2 is live; version 1, which hardly learned, was before."""

    workspace: Workspace
    models: Mapping[str, FittedModel]

    def apart(self, folder: Path) -> Lived:
        """The same places with a copy of the ledger."""
        there, here = (sqlite3.connect(f / "ledger.db") for f in (self.workspace.home, folder))
        with closing(there), closing(here):
            there.backup(here)
        ledger = Ledger(f"sqlite:///{folder}/ledger.db")
        return replace(self, workspace=replace(self.workspace, ledger=ledger))

    def declare(self, **sections: Any) -> Declaration:
        return declare(self.workspace.home, **{**SMALL, "bake": BAKE, **sections})

    @property
    def live(self) -> PromotionRow:
        with self.workspace.ledger.read() as session:
            row = records.champion(session, "example")
        assert row is not None
        return row

    @property
    def events(self) -> dict[str, dict[str, Any]]:
        with self.workspace.ledger.read() as session:
            return records.events_of(session, self.live.id)

    def note(self, event: str, **detail: Any) -> None:
        with self.workspace.ledger.write() as session:
            records.add_event(session, self.live, event, detail)

    def verify(self, version: str) -> None:
        with self.workspace.ledger.write() as session:
            row = records.promotion_of_version(session, "example", version)
            assert row is not None
            records.add_event(session, row, "verified", {})

    def quarantine(self, version: str) -> None:
        with self.workspace.ledger.write() as session:
            row = records.promotion_of_version(session, "example", version)
            assert row is not None
            left = {"promotion_id": row.id, "run_id": "left", "reason": "it was bad"}
            session.add(QuarantineRow(model="example", version=version, **left))

    def promote(self, version: str) -> None:
        """Another version goes live, without all that a promotion is."""
        columns = PromotionRow.__table__.columns.keys()
        with self.workspace.ledger.write() as session:
            live = records.champion(session, "example")
            assert live is not None
            same = {c: getattr(live, c) for c in columns if c not in {"id", "recorded_at"}}
            new = {"version": version, "position": live.position + 1, "run_id": f"to {version}"}
            session.add(PromotionRow(**{**same, **new}))

    def answer(
        self,
        day: int,
        rows: int,
        *,
        truth: Callable[[pd.DataFrame], Any],
        answers: Callable[[pd.DataFrame], Any] | None = None,
        known_at: datetime | None = None,
    ) -> None:
        """A day that version 2 answered, and what became of its labels: drawn with chance
        ``truth``."""
        rng = np.random.default_rng(day)
        start = datetime(2013, 1, 1, tzinfo=UTC) + timedelta(days=day - 1)
        key = f"{start:%Y-%m-%d}"
        frame = pd.DataFrame(
            {
                "row_id": range(rows),
                "event_timestamp": pd.date_range(start, periods=rows, freq="10s").as_unit("us"),
                "x": rng.normal(size=rows),
                "kind": rng.choice(["a", "b"], rows),
            }
        )
        given = answers(frame) if answers else self.models["2"].predict(frame)
        log = frame.assign(prediction=given, model_version="2")
        store, known = self.workspace.store, known_at or start + timedelta(days=1)
        labels = pd.DataFrame(
            {
                "row_id": frame["row_id"],
                "label": rng.binomial(1, truth(frame)).astype(float),
                "label_timestamp": pd.Timestamp(known).as_unit("us"),
            }
        )
        shared = {"model": "example", "partition": key, "revision": 1, "version": "2", "rows": rows}
        score = ScoreRow(
            **shared, run_id=key, digest=key, metrics={},
            uri=store.put_table(f"predictions/{self.workspace.ledger.url.database}{key}", log),
        )  # fmt: skip
        label = LabelRow(
            **shared, as_of=known, sequence=day, matured=rows, pending=0,
            uri=store.put_table(f"labels/{self.workspace.ledger.url.database}{key}", labels),
        )  # fmt: skip
        with self.workspace.ledger.write() as session:
            session.add_all([score, label])


def went_live(life: Life, day: int) -> FittedModel:
    """Train, evaluate and register what the days until ``day`` teach, and write its promotion: a
    whole run takes too long to be made twice."""
    declared, workspace = life.declaration, life.workspace
    as_of = datetime(2013, 1, day + 1, tzinfo=UTC)
    run = Foreground(declared, workspace, as_of)
    trained, store = run.trained, workspace.store
    version = registry.register_version(
        workspace, declared, trained.mlflow_run, trained.model_uri, {}
    )
    origin = Origin(
        version=version,
        trained=trained.save(store),
        features=run.features.save(store),
        evaluation=run.evaluation.save(store),
    )
    snapshot = run.snapshot.save(store)
    row = PromotionRow(
        model="example", position=int(version), run_id=f"run {version}", version=version,
        replaced=str(int(version) - 1), kind="promote", reason="", as_of=as_of,
        mlflow_run=trained.mlflow_run, model_uri=trained.model_uri, snapshot_uri=snapshot.uri,
        snapshot_digest=snapshot.digest, trained_through=trained.trained_through,
        origin=origin.to_dict(),
    )  # fmt: skip
    with workspace.ledger.write() as session:
        session.add(row)
    return load_fitted(workspace, declared, trained.model_uri)


def live_twice(folder: Path) -> Lived:
    """Train both versions and promote them."""
    life = Life.begin(folder, training=WEAK)
    life.land(1)
    life.land(2)
    weak = went_live(life, 2)
    better = Life(declare(folder, **SMALL), life.workspace)
    better.land(3, rows=280)
    return Lived(life.workspace, {"1": weak, "2": went_live(better, 3)})


def with_replicas(lived: Lived, *addresses: str, **bake: Any) -> Declaration:
    return lived.declare(
        serving={"replicas": list(addresses)},
        bake={**BAKE, **bake},
        gate={**SMALL["gate"], "latency_p95_ms": 50},
    )


def well(rows: pd.DataFrame) -> Any:
    """What the life's labels follow."""
    return 1 / (1 + np.exp(-2.0 * rows["x"]))


def turned(rows: pd.DataFrame) -> Any:
    return 1 - well(rows)


def level(rows: pd.DataFrame) -> Any:
    return np.full(len(rows), 0.5)
