"""Homes whose MLflow database has its tables: MLflow makes them once, a copy is as good."""

from __future__ import annotations

import atexit
import shutil
import sqlite3
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path


def furnish(home: Path) -> Path:
    """A home with an ``mlflow.db``, which takes MLflow a second to make; one in use is left alone."""
    file = home / "mlflow.db"
    if not file.exists():
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_database(), file)
    return home


@cache
def _database() -> Path:
    from mlflow import MlflowClient

    folder = Path(tempfile.mkdtemp(prefix="evergreen-mlflow-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    used, whole = folder / "used.db", folder / "mlflow.db"
    uri = f"sqlite:///{used}"
    MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments()
    with closing(sqlite3.connect(used)) as made, closing(sqlite3.connect(whole)) as copy:
        made.backup(copy)  # MLflow keeps its connection, and may keep pages in a journal
    return whole
