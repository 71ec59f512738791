"""What the measurements run on: the flight model of this repository, month by month.

`FOLDER` is that of one measurement; the raw tables are made once for all of them, beside it.
"""

from __future__ import annotations

import os
import runpy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

REPOSITORY = Path(__file__).parents[2]
MODEL = "flight_delay"
MODEL_FOLDER = REPOSITORY / "include" / "models" / MODEL
FOLDER = Path(os.environ["EVERGREEN_BENCH_FOLDER"])
MONTHS = ("2013-01", "2013-02", "2013-03")


def dataset() -> dict[str, Path]:
    """The raw tables, ``flights`` and ``weather``, as files."""
    folder = FOLDER.parent / "dataset"
    paths = {name: folder / f"{name}.parquet" for name in ("flights", "weather")}
    if not all(path.exists() for path in paths.values()):
        runpy.run_path(str(MODEL_FOLDER / "dataset.py"))["write"](folder)
    return paths


def month(key: str) -> dict[str, pd.DataFrame]:
    """A month of each raw table."""
    import pandas as pd

    tables = {name: pd.read_parquet(path) for name, path in dataset().items()}
    return {
        name: table[table["event_timestamp"].dt.strftime("%Y-%m") == key].reset_index(drop=True)
        for name, table in tables.items()
    }


def land(home: Path, key: str) -> None:
    """Put a month's files where the model's declaration says, whole."""
    for name, table in month(key).items():
        target = home / "landing" / name / f"{key}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(aside := target.with_name(f".{target.name}"), index=False)
        aside.rename(target)


def project(name: str) -> Path:
    """A project of the flight model alone, which trains and doesn't score: one thing at a time."""
    folder = FOLDER / name
    if not folder.exists():
        shutil.copytree(MODEL_FOLDER, folder / "include" / "models" / MODEL)
        (folder / "dags").mkdir()
        for family in ("ingest", "retrain"):
            shutil.copy(REPOSITORY / "dags" / f"{family}.py", folder / "dags")
    return folder
