"""``make bench``: what Evergreen costs, measured here and now, beside what it should cost at most.

Seconds depend on the machine and on what else runs there; ratios, all of one run, say more. Each
measurement has a process and a bounded time of its own. ``--only parsing`` takes one, ``--json
FILE`` writes the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Json = dict[str, Any]

REPOSITORY = Path(__file__).parents[2]
#: Measurement → the seconds it may take; seven and a half minutes together.
MEASUREMENTS = {
    "parsing": 25,
    "retrain": 220,
    "joining": 50,
    "gating": 40,
    "validation": 25,
    "drift": 90,
}
#: Seconds that a measurement gets to end what it has started.
GRACE = 25
ENVIRONMENT = {
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MPLBACKEND": "Agg",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENBLAS_NUM_THREADS": "1",
}


def main() -> int:
    """Measure, print, and say by the exit code whether everything could be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, help="may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table(title=f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    for heading in ("", "measured", "at most", "from"):
        table.add_column(heading, justify="right" if heading in {"measured", "at most"} else "left")
    taken: dict[str, list[Json]] = {}
    complete = True
    with tempfile.TemporaryDirectory(prefix="evergreen-bench-", ignore_cleanup_errors=True) as temp:
        for name in options.only or MEASUREMENTS:
            with console.status(f"measuring {name}, at most {MEASUREMENTS[name]} s"):
                figures, problem = measure(name, Path(temp, name))
            table.add_section()
            table.add_row(f"[bold]{name}[/]", "", "", problem and f"[red]{problem}[/]")
            for figure in figures:
                table.add_row(*cells(figure))
            taken[name], complete = figures, complete and not problem
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(taken, indent=1) + "\n")
    return 0 if complete else 1


def measure(name: str, folder: Path) -> tuple[list[Json], str]:
    """Take one measurement below ``folder``; its figures, or why there are none."""
    folder.mkdir()
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "EVERGREEN"))}
    places = {
        "AIRFLOW_HOME": f"{folder}/airflow",
        "EVERGREEN_BENCH_FOLDER": str(folder),
        "TMPDIR": str(folder),
    }
    answer, said = folder / "figures.json", folder / "log.txt"
    with said.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.figures", name, str(answer)],
            cwd=REPOSITORY,
            env=inherited | ENVIRONMENT | places,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        in_time = finish(process, MEASUREMENTS[name])
    if not in_time:
        return [], f"not done within {MEASUREMENTS[name]} s"
    if process.returncode:
        return [], f"failed: {''.join(said.read_text(errors='replace').splitlines()[-1:])}"
    figures: list[Json] = json.loads(answer.read_text())
    return figures, ""


def finish(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for a process, at most so many seconds; whatever happens, nothing of it stays."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    finally:
        for end in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, end)
                process.wait(GRACE)
    return True


def cells(figure: Json) -> tuple[str, str, str, str]:
    """A figure as a row: green when it keeps its target, red when it doesn't."""
    value, unit, target = figure["value"], figure["unit"], figure["target"]
    shown = f"{value:,.{2 if unit == 's' else 0}f} {unit}".rstrip()
    if target is None:
        return figure["name"], shown, "", figure["detail"]
    colour = "green" if value <= target else "red"
    return figure["name"], f"[{colour}]{shown}[/]", f"{target:g} {unit}".rstrip(), figure["detail"]


if __name__ == "__main__":
    sys.exit(main())
