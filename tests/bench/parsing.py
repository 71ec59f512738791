"""Parsing ``dags/``: seconds over a bare ``import airflow.sdk``, with one model and with a hundred.

Each parse runs in a process of its own, forked from one that has imported `airflow.sdk` and
nothing else. The best counts: what else runs on the machine is not the parser's time.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from runpy import run_path

from tests.bench.children import in_child
from tests.bench.figures import Figure
from tests.bench.flights import FOLDER, MODEL, MODEL_FOLDER, REPOSITORY

ROUNDS = 5
#: Number of models → seconds that parsing may take.
TARGETS = {1: 0.15, 100: 1.5}
LIBRARIES = frozenset(
    {"duckdb", "evidently", "feast", "great_expectations", "ibis", "lightgbm", "matplotlib"}
    | {"mlflow", "numpy", "pandas", "plotly", "pyarrow", "scipy", "skops", "sklearn", "xgboost"}
)


def measure() -> Iterator[Figure]:
    """Seconds for each number of models, and the ML libraries that were imported."""
    import_module("airflow.sdk")
    bare = set(sys.modules)
    found: set[str] = set()
    for models, target in TARGETS.items():
        dags = project(models)
        rounds = [in_child(partial(parse, dags)) for _ in range(ROUNDS)]
        seconds = [taken for taken, _ in rounds]
        found.update(*(modules for _, modules in rounds))
        spread = f"best of {ROUNDS}, worst {max(seconds):.2f} s"
        yield Figure(f"dags/, {models} declared", min(seconds), "s", target, spread)
    libraries = sorted({module.partition(".")[0] for module in found - bare} & LIBRARIES)
    yield Figure("ML libraries imported", len(libraries), "", 0, ", ".join(libraries) or "none")


def parse(dags: Path) -> tuple[float, list[str]]:
    """Execute every DAG file; the seconds, and what is imported then."""
    began = time.perf_counter()
    for file in sorted(dags.glob("*.py")):
        run_path(str(file))
    return time.perf_counter() - began, sorted(sys.modules)


def project(models: int) -> Path:
    """The DAG files over so many copies of the flight model, each in a zone of its own."""
    folder = FOLDER / f"parsing-{models}"
    text = (MODEL_FOLDER / "model.yaml").read_text()
    for number in range(models):
        model = folder / "include" / "models" / f"model_{number:03}"
        model.mkdir(parents=True)
        named = text.replace(f"name: {MODEL}", f"name: {model.name}")
        (model / "model.yaml").write_text(
            named.replace("  partition: month", "  partition: month\n  timezone: Europe/Vienna")
        )
    shutil.copytree(REPOSITORY / "dags", folder / "dags")
    return folder / "dags"
