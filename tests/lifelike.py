"""A model with a life, without Airflow: land days, decide, train, judge, promote, score."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evergreen.declaration import Declaration
from evergreen.foreground import Foreground
from evergreen.lifecycle.arbitration import arbitrate
from evergreen.lifecycle.contracts import Decision, Promotion, ScoreReport, Verdict
from evergreen.lifecycle.gating import gate
from evergreen.lifecycle.ingestion import ingest
from evergreen.lifecycle.promotion import promote
from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in

LATER = datetime(2030, 1, 1, tzinfo=UTC)
SMALL: dict[str, Any] = {
    "training": {
        "estimator": "sklearn.linear_model.LogisticRegression",
        "holdout": {"length": "1d", "min_rows": 50},
        "window": {"min_rows": 50},
    },
    "triggers": {"new_data": {"min_rows": 1}},
    "gate": {"resamples": 400, "latency_p95_ms": 5000, "memory_mb": 8000},
}


@dataclass(frozen=True)
class Life:
    """A declared model in a workspace of its own."""

    declaration: Declaration
    workspace: Workspace

    @classmethod
    def begin(cls, folder: Path, **sections: Any) -> Life:
        return cls(declare(folder, **{**SMALL, **sections}), workspace_in(folder))

    def land(self, day: int, *, rows: int = 200, slope: float = 2.0, **columns: Any) -> str:
        """Land and register a day whose label follows ``x`` with ``slope``."""
        rng = np.random.default_rng(day)
        start = pd.Timestamp("2013-01-01T00:00Z") + pd.Timedelta(days=day - 1)
        x = rng.normal(size=rows)
        frame = pd.DataFrame(
            {
                "event_timestamp": pd.date_range(start, periods=rows, freq="5min").as_unit("us"),
                "origin": [f"o{i}" for i in range(rows)],
                "x": x,
                "kind": rng.choice(["a", "b"], rows),
                "late": rng.binomial(1, 1 / (1 + np.exp(-slope * x))).astype(float),
            }
        ).assign(**columns)
        frame["label_timestamp"] = frame["event_timestamp"] + timedelta(hours=1)
        path = self.workspace.home / "landing" / f"{start:%Y-%m-%d}.parquet"
        path.parent.mkdir(exist_ok=True)
        frame.to_parquet(path, index=False)
        ingest(self.declaration, self.workspace, LATER)
        return f"{start:%Y-%m-%d}"

    def decide(self, run_id: str) -> Decision:
        return arbitrate(self.declaration, self.workspace, run_id=run_id)

    def judge(self, decision: Decision) -> tuple[Verdict, Foreground]:
        """Everything up to the verdict."""
        run = Foreground(self.declaration, self.workspace, decision.as_of)
        verdict = gate(
            self.declaration,
            self.workspace,
            decision,
            run.trained,
            run.validation,
            run.evaluation,
            run.infrastructure,
        )
        return verdict, run

    def promote(self, decision: Decision, verdict: Verdict, run: Foreground) -> Promotion:
        store = self.workspace.store
        return promote(
            self.declaration,
            self.workspace,
            decision,
            verdict,
            run.trained,
            run.snapshot.save(store),
            run.features,
            run.evaluation.save(store),
        )

    def retrain(self, run_id: str) -> Verdict:
        """A whole run; the promotion too when the verdict says so."""
        decision = self.decide(run_id)
        verdict, run = self.judge(decision)
        if verdict.promotes:
            self.promote(decision, verdict, run)
        return verdict

    def score(self) -> ScoreReport:
        return Foreground(self.declaration, self.workspace, LATER).score()
