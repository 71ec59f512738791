"""``make bench``: what Evergreen costs, measured here and now, beside what it should cost at most.

Seconds depend on the machine and on what else runs there; ratios, all of one run, say more. Each
measurement has a process and a bounded time of its own. ``--only parsing`` takes one, ``--json
FILE`` writes the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).parents[2]
#: Measurement → the seconds it may take; six minutes together.
MEASUREMENTS = {"parsing": 40, "retrain": 190, "joining": 50, "gating": 50, "validation": 30}
ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MPLBACKEND": "Agg",
    "OMP_WAIT_POLICY": "PASSIVE",
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
}


def main() -> int:
    """Measure, print, and say by the exit code whether everything could be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, help="may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    console, taken, complete = Console(), {}, True
    table = Table(title=f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    for heading in ("", "measured", "at most", "from"):
        table.add_column(heading, justify="right" if heading in {"measured", "at most"} else "left")
    for name in options.only or MEASUREMENTS:
        with console.status(f"measuring {name}, at most {MEASUREMENTS[name]} s"):
            figures, problem = measure(name, MEASUREMENTS[name])
        table.add_section()
        table.add_row(f"[bold]{name}[/]", "", "", problem and f"[red]{problem}[/]")
        for figure in figures:
            table.add_row(*cells(figure))
        taken[name], complete = figures, complete and not problem
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(taken, indent=1) + "\n")
    return 0 if complete else 1


def measure(name: str, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Take one measurement; its figures, or why there are none."""
    with tempfile.TemporaryDirectory(prefix="evergreen-bench-", ignore_cleanup_errors=True) as temp:
        folder = Path(temp)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "EVERG"))}
        places = {
            "AIRFLOW_HOME": f"{folder}/airflow",
            "EVERGREEN_BENCH_FOLDER": temp,
            "EVERGREEN_BENCH_DEADLINE": str(time.time() + seconds),
            "TMPDIR": temp,
        }
        command = [sys.executable, "-m", "tests.bench.figures", name, f"{folder}/figures.json"]
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=inherited | ENVIRONMENT | places,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            problem = finish(process, seconds)
        figures = folder / "figures.json"
        if process.returncode == 0 and figures.exists():
            return json.loads(figures.read_text()), ""
        last = (folder / "log.txt").read_text(errors="replace").splitlines()[-1:]
        return [], problem or f"failed: {''.join(last)}"


def finish(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait; end the process and its children after ``seconds``, and say so."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"not done within {seconds:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return ""


def cells(figure: dict[str, Any]) -> tuple[str, str, str, str]:
    """A figure as a row: green when it keeps its target, red when it doesn't."""
    value, unit, target = figure["value"], figure["unit"], figure["target"]
    digits = {"s": 2, "": 0, "ms": 0, "×": 0, "%": 0}[unit]
    shown = f"{value:,.{digits}f} {unit}".rstrip()
    if target is None:
        return figure["name"], shown, "", figure["detail"]
    colour = "green" if value <= target else "red"
    return figure["name"], f"[{colour}]{shown}[/]", f"{target:g} {unit}".rstrip(), figure["detail"]


if __name__ == "__main__":
    sys.exit(main())
