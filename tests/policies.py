"""What triggers would have done: the flight model's year, rehearsed without Airflow.

``python -m tests.policies FOLDER [sections as JSON]`` prints a line a month.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration, read_declaration
from evergreen.rehearsal import Rehearsal, Step
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

MODEL = Path(__file__).parents[1] / "include" / "models" / "flight_delay"
MONTHLY: dict[str, Any] = {"schedule": "@monthly"}


@dataclass(frozen=True)
class Year:
    """A rehearsed year: each month's step, and how its champion did."""

    steps: Mapping[str, Step]
    metrics: Mapping[str, dict[str, float]]

    @property
    def retrains(self) -> int:
        """How often it was retrained after the first version."""
        return sum(step.decision.action == "retrain" for step in self.steps.values()) - 1

    def mean(self, metric: str) -> float:
        """Over the months from March on."""
        return fmean(found[metric] for key, found in self.metrics.items() if key >= "2013-03")


def datasets(folder: Path) -> dict[str, pd.DataFrame]:
    """The raw tables; made once below ``folder``."""
    import pandas as pd

    paths = {name: folder / f"{name}.parquet" for name in ("flights", "weather")}
    if not all(path.exists() for path in paths.values()):
        runpy.run_path(str(MODEL / "dataset.py"))["write"](folder)
    return {name: pd.read_parquet(path) for name, path in paths.items()}


def declared(**sections: Any) -> Declaration:
    """The flight model with other sections."""
    content = read_declaration(MODEL).model_dump(mode="json", exclude_unset=True)
    declaration = Declaration.model_validate({**content, **sections})
    declaration._folder = MODEL
    return declaration


def rehearse(home: Path, tables: Mapping[str, pd.DataFrame], declaration: Declaration) -> Year:
    """Live through the year, month by month."""
    workspace = Workspace.from_environment({"EVERGREEN_HOME": str(home)})
    heard = declaration.triggers.drift or declaration.triggers.performance
    rehearsal = Rehearsal(declaration, workspace, watching=heard is not None)
    steps = {}
    for key, frames in _months(tables):
        for name, frame in frames.items():
            target = home / "landing" / name / f"{key}.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            frame.to_parquet(target, index=False)
        steps[key] = rehearsal.step(declaration.data.partition.end(key))
        print(line(key, steps[key]), flush=True)  # noqa: T201 - the figures are what this is for
    return Year(steps, {key: metrics for key, _, metrics in rehearsal.metrics()})


def line(key: str, step: Step) -> str:
    """A month in words."""
    signals = "; ".join(
        reason for s in (step.watched.signals if step.watched else ()) for reason in s.reasons
    )
    verdict = step.verdict.verdict if step.verdict else "–"
    return (
        f"{key} {step.decision.action:<11} {step.decision.cause or '–':<11} {verdict:<12} {signals}"
    )


def _months(tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    keys = {name: table["event_timestamp"].dt.strftime("%Y-%m") for name, table in tables.items()}
    for number in range(1, 13):
        key = f"2013-{number:02}"
        yield key, {name: table[keys[name] == key] for name, table in tables.items()}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    chosen = declared(**json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}"))
    with TemporaryDirectory(dir=place) as home:
        year = rehearse(Path(home), datasets(place), chosen)
    print(f"{year.retrains} retrains, mean log loss {year.mean('log_loss'):.4f}")  # noqa: T201
