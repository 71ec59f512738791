"""The clean process: load a model as a server would, answer, measure, write down.

``python -m evergreen.lifecycle.infrastructure_probe in.json out.json``, or forked by
`evergreen.lifecycle.infrastructure_process`.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

#: The first one first: it asks every module that is there for SciPy's functions.
LIBRARIES = ("skops.io", "mlflow.sklearn", "pyarrow.parquet", "evergreen.lifecycle.fitted")
WARM_UP = 5
#: Rows of one request → how many are timed in a round.
REQUESTS = {1: 40, 1_000: 10}
#: What else runs on the machine is not the model's latency: the quietest round counts.
ROUNDS = 3


def main(question: Path, answer: Path, imported_mb: float = 0.0) -> None:
    """Answer the question; a model that fails is an answer with a problem.

    :param imported_mb: what the imports take in the process that this one was forked from: a fork
        maps of them only what it touches, a server all.
    """
    shared = max(0.0, imported_mb - memory_mb("VmRSS"))
    asked = json.loads(question.read_text())
    found: dict[str, Any] = {"loads": False}
    try:
        _measure(asked, found)
    except Exception as error:  # noqa: BLE001 - any failure of the model is what is asked about
        found["problem"] = f"{type(error).__name__}: {error}"
    finally:
        gc.enable()
    found["memory_mb"] = round(peak_memory_mb() + shared, 1)
    aside = answer.with_suffix(".aside")
    aside.write_text(json.dumps(found))
    aside.replace(answer)


def import_libraries() -> None:
    """Import what any model needs; what one needs beside that is imported as it is loaded.

    No garbage is collected from then on: imports leave none, and looking takes a sixth of their time.
    """
    gc.disable()
    for name in LIBRARIES:
        import_module(name)


def _measure(asked: dict[str, str], found: dict[str, Any]) -> None:
    import_libraries()
    import mlflow.pyfunc
    import numpy as np
    import pandas as pd

    from evergreen.declaration import Task
    from evergreen.lifecycle.fitted import digest_of_predictions, features_of, shaped

    rows, task = pd.read_parquet(asked["rows"]), Task(asked["task"])
    began = perf_counter()
    # Its warnings compare every installed distribution with the model's requirements, which are
    # this environment's own: a quarter of the load for nothing.
    model = mlflow.pyfunc.load_model(asked["model"], suppress_warnings=True)
    found["load_seconds"] = round(perf_counter() - began, 3)
    gc.enable()
    found["loads"] = True
    found["signature"] = [[f.name, f.type] for f in features_of(model.metadata.signature)]
    answers = shaped(task, model.predict(rows))
    found["predictions_digest"] = digest_of_predictions(answers)
    if not np.isfinite(answers).all():
        found["problem"] = f"{int((~np.isfinite(answers)).sum()):,} answers are NaN or infinite"
    found["latency_ms"] = {}
    for size, repeats in REQUESTS.items():
        rounds = [_seconds(model, rows, size, repeats) for _ in range(ROUNDS)]
        p50, p95 = np.percentile(rounds, [50, 95], axis=1).min(axis=1) * 1000
        unit = "row" if size == 1 else "rows"
        found["latency_ms"] |= {f"p50_{size}_{unit}": float(p50), f"p95_{size}_{unit}": float(p95)}


def _seconds(model: Any, rows: Any, size: int, repeats: int) -> list[float]:
    """How long each request of ``size`` rows took, once warm."""
    import numpy as np

    taken = []
    for k in range(-WARM_UP, repeats):
        request = rows.iloc[np.arange(k * size, (k + 1) * size) % len(rows)].reset_index(drop=True)
        began = perf_counter()
        model.predict(request)
        if k >= 0:
            taken.append(perf_counter() - began)
    return taken


def peak_memory_mb() -> float:
    """This process's largest resident memory so far, in MB.

    Linux counts a parent's memory into ``ru_maxrss`` of what it starts (the mark survives
    ``exec``), so its own mark is read there.
    """
    if peak := memory_mb("VmHWM"):
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)


def memory_mb(mark: str, process: int | str = "self") -> float:
    """A mark of a process's memory, in MB; 0 where the system has none.

    :param mark: ``VmRSS`` or ``VmHWM``, see proc(5).
    """
    status = Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.exists() else ()
    marks = (line.split() for line in lines)
    return next((round(int(it[1]) / 1024, 1) for it in marks if it[:1] == [f"{mark}:"]), 0.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
