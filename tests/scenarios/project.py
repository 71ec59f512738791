"""A small real project for scenarios: its folder, its data, its DAG runs, what they left behind.

The DAG files are the repository's own, the data is synthetic: a label that follows ``signal`` in
January and ``turn`` as strongly from February on, so that more data makes a better model. DAGs
run in this process through `airflow.sdk.DAG.test`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import yaml

from evergreen.declaration import Declaration, read_declaration
from evergreen.ledger import records
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

REPOSITORY = Path(__file__).parents[2]
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
    "gate": {"resamples": 400, "memory_mb": 4096, "latency_p95_ms": 5000},
    "triggers": {"new_data": {"min_rows": 300}},
}


@dataclass(frozen=True)
class Run:
    """What is left of a DAG run.

    :ivar states: task → state.
    :ivar logs: task → what it logged, one event a line.
    """

    run_id: str
    state: str
    states: dict[str, str]
    logs: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class Project:
    """A project of one model below ``folder``."""

    folder: Path
    name: str

    @property
    def model(self) -> Path:
        """The model's folder."""
        return self.folder / "include" / "models" / self.name

    @property
    def workspace(self) -> Workspace:
        """Where the project keeps its things."""
        return Workspace.from_environment({"EVERGREEN_HOME": str(self.folder / "home")})

    @property
    def declaration(self) -> Declaration:
        """The declared model."""
        return read_declaration(self.model)

    def declare(self, **sections: Any) -> None:
        """Write ``model.yaml``; ``sections`` are merged over `MODEL`, one level deep."""
        content = {"name": self.name, **MODEL}
        for key, section in sections.items():
            merged = {**content.get(key, {}), **section} if isinstance(section, dict) else section
            content[key] = merged
        self.model.mkdir(parents=True, exist_ok=True)
        (self.model / "model.yaml").write_text(yaml.safe_dump(content))

    def copy(self, folder: Path) -> Project:
        """The same project elsewhere. What it had made stays where it was and is only read."""
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)

    def land(self, key: str, frame: pd.DataFrame) -> Path:
        """Put a partition's file into the landing folder, whole."""
        uri = self.declaration.data.uri.replace("{partition}", key)
        target = Path(self.workspace.landing_uri(uri))
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}")
        frame.to_parquet(aside, index=False)
        return aside.rename(target)
