"""A small real project for scenarios: its folder, its data, its DAG runs, what they left behind.

The DAG files are the repository's own; the data is synthetic. Its label follows ``signal``, and
from February on ``turn`` as strongly, so that a model which has seen February is a better one.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from evergreen.declaration import Declaration, read_declaration
from evergreen.ledger import records
from evergreen.lifecycle import connection, tracking
from evergreen.lifecycle.arbitration import arbitrate
from evergreen.workspace import Workspace
from tests.homes import furnish
from tests.scenarios.runs import Run, begin, run_dag

if TYPE_CHECKING:
    import pandas as pd

DAGS = Path(__file__).parents[2] / "dags"
MODEL: dict[str, Any] = {
    "task": "binary_classification",
    "owner": {"team": "ops", "contact": "ops@example.com"},
    "data": {
        "uri": "landing/{partition}.parquet",
        "partition": "month",
        "entities": ["row"],
        "label": {"column": "late", "timestamp": "label_timestamp"},
    },
    "training": {
        "estimator": "sklearn.linear_model.LogisticRegression",
        "holdout": {"length": "14d"},
    },
    "evaluation": {"primary": "log_loss", "metrics": ["roc_auc"]},
    # Wide where a noisy machine would decide: what is slow is not what these tests are about.
    "gate": {"resamples": 400, "memory_mb": 4096, "latency_p95_ms": 5000},
    "triggers": {"new_data": {"min_rows": 300}},
}


def month(key: str, *, rows: int = 800, seed: int = 0) -> pd.DataFrame:
    """A month of rows, evenly spread; labels become known six hours later.

    :param key: like ``2024-01``.
    """
    import numpy as np
    import pandas as pd

    random = np.random.default_rng([seed, *map(int, key.split("-"))])
    start = pd.Timestamp(key, tz="UTC")
    step = (start + pd.offsets.MonthBegin(1) - start) / rows
    times = pd.DatetimeIndex(start + step * np.arange(rows)).as_unit("us")
    signal, turn = random.normal(size=(2, rows))
    logit = 1.5 * signal + (1.5 * turn if key >= "2024-02" else 0.0)
    late = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(float)
    return pd.DataFrame(
        {
            "event_timestamp": times,
            "row": np.arange(rows),
            "signal": signal,
            "turn": turn,
            "late": late,
            "label_timestamp": times + pd.Timedelta(hours=6),
        }
    )


@dataclass(frozen=True)
class Project:
    """A project of one model below ``folder``."""

    folder: Path
    name: str = "example"

    @classmethod
    def create(cls, folder: Path, name: str = "example", **sections: Any) -> Project:
        """A new one, with the repository's DAG files."""
        project = cls(folder, name)
        shutil.copytree(DAGS, folder / "dags", ignore=shutil.ignore_patterns("__pycache__"))
        project.declare(**sections)
        furnish(project.home)
        return project

    def copy(self, folder: Path) -> Project:
        """The same project elsewhere. What it made before stays where it is, and is only read."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("*-shm"))
        return replace(self, folder=folder)

    def declare(self, **sections: Any) -> None:
        """Write ``model.yaml``; ``sections`` are merged over `MODEL`, one level deep."""
        content = {"name": self.name, **MODEL}
        for key, section in sections.items():
            merged = {**content.get(key, {}), **section} if isinstance(section, dict) else section
            content[key] = merged
        self.write("model.yaml", yaml.safe_dump(content))

    def write(self, name: str, text: str) -> None:
        """Write a file of the model's folder."""
        target = self.models / self.name / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    @property
    def models(self) -> Path:
        """The folder of model folders."""
        return self.folder / "include" / "models"

    @property
    def home(self) -> Path:
        """What is ``EVERGREEN_HOME`` for the project's runs."""
        return self.folder / "home"

    @property
    def workspace(self) -> Workspace:
        """Where the project keeps its things."""
        return Workspace.from_environment({"EVERGREEN_HOME": str(self.home)})

    @property
    def declaration(self) -> Declaration:
        """The model as it is declared now."""
        return read_declaration(self.models / self.name)

    def land(self, **frames: pd.DataFrame) -> None:
        """Put files into the landing folder, whole: ``m2024_02=frame`` is the partition 2024-02."""
        for name, frame in frames.items():
            key = name.removeprefix("m").replace("_", "-")
            uri = self.declaration.data.uri.replace("{partition}", key)
            target = Path(self.workspace.landing_uri(uri))
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.with_name(f".{target.name}")
            frame.to_parquet(aside, index=False)
            aside.rename(target)

    def ingest(self, **frames: pd.DataFrame) -> Run:
        """Land ``frames`` and run the ingest DAG as its sweep does."""
        self.land(**frames)
        return self._run("ingest", "scheduled", {})

    def retrain(self) -> Run:
        """Run the retrain DAG as a new partition's asset event does."""
        return self._run("retrain", "asset_triggered", {})

    def retrain_by_hand(self, **form: Any) -> Run:
        """Run the retrain DAG as a person does, from Airflow's form."""
        return self._run("retrain", "manual", form)

    def begin_retrain(self) -> str:
        """A retrain that Airflow runs still, whose first task has decided. Returns its run id."""
        run_id = begin(self.folder / "dags", f"{self.name}.retrain", self.home)
        arbitrate(self.declaration, self.workspace, run_id=run_id)
        return run_id

    def score(self, **form: Any) -> Run:
        """Run the score DAG as a new partition's asset event does."""
        return self._run("score", "asset_triggered", form)

    def monitor(self) -> Run:
        """Run the monitor DAG as it runs after every scoring."""
        return self._run("monitor", "asset_triggered", {})

    def roll_back(self, **form: Any) -> Run:
        """Run the rollback DAG as a person does, from Airflow's form."""
        return self._run("rollback", "manual", form)

    def live(self, **frames: pd.DataFrame) -> dict[str, Run]:
        """What happens when a partition lands: ingest, score, monitor, retrain, in this order."""
        return {
            "ingest": self.ingest(**frames),
            "score": self.score(),
            "monitor": self.monitor(),
            "retrain": self.retrain(),
        }

    def _run(self, family: str, kind: str, form: dict[str, Any]) -> Run:
        return run_dag(self.folder / "dags", f"{self.name}.{family}", kind, form, self.home)

    def versions(self) -> dict[str, dict[str, str]]:
        """MLflow's registered versions → tags."""
        with connection.session(self.workspace) as mlflow:
            found = mlflow.search_model_versions(f"name = '{self.name}'")
        return {str(version.version): dict(version.tags) for version in found}

    def champion(self) -> str | None:
        """Where MLflow's alias points."""
        return tracking.champion_version(self.workspace, self.declaration)

    def history(self) -> list[dict[str, Any]]:
        """Every decision with outcome, verdict and promotion, oldest first."""
        with self.workspace.ledger.read() as session:
            return records.history(session, self.name)

    def last(self, part: str) -> Any:
        """The newest decision's row: ``decision``, ``outcome``, ``verdict`` or ``promotion``."""
        return self.history()[-1][part]

    def open_causes(self) -> list[str]:
        """The causes of open signals, in order."""
        with self.workspace.ledger.read() as session:
            return [signal.cause for signal in records.open_signals(session, self.name)]
