"""Put a load on an address from a second process, and read what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LOCUSTFILE = Path(__file__).with_name("locustfile.py")


@dataclass(frozen=True)
class Answer:
    """One request: ``began`` is a Unix time in seconds, ``status`` 0 when nothing came back."""

    id: str
    status: int
    version: str | None
    began: float
    ms: float
    error: str | None
    body: str | None

    @property
    def ended(self) -> float:
        """When it was over, as a Unix time in seconds."""
        return self.began + self.ms / 1000


@dataclass(frozen=True)
class Load:
    """A load that has begun in a process of its own."""

    process: subprocess.Popen[bytes]
    out: Path
    log: Path
    until: Path | None = None

    def enough(self) -> None:
        """Let it end as soon as it has made its requests."""
        assert self.until is not None, "it ends by itself"
        self.until.touch()

    def answers(self, timeout: float) -> list[Answer]:
        """Every answer, once the load is over."""
        self.process.wait(timeout)
        assert self.out.exists(), self.log.read_text()[-3000:]
        return [Answer(**each) for each in json.loads(self.out.read_text())]

    def stop(self) -> None:
        """End it, if it hasn't ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


def begin(
    folder: Path,
    address: str,
    paths: Sequence[str],
    bodies: Sequence[Any],
    *,
    name: str,
    requests: int,
    users: int = 8,
    rate: float | None = None,
    most: int | None = None,
) -> Load:
    """Start the load.

    :param most: go on after ``requests`` until told that it is enough, for so many in all.
    """
    until = folder / f"{name}.enough" if most else None
    out, log = folder / f"{name}.json", folder / f"{name}.log"
    plan = {
        "name": name,
        "count": requests,
        "most": most or requests,
        "until": str(until) if until else None,
        "rate": rate,
        "paths": list(paths),
        "bodies": list(bodies),
        "out": str(out),
    }
    command = [
        sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary",
        "--users", str(users), "--spawn-rate", str(users), "--host", address, "--loglevel", "WARNING",
        "--exit-code-on-error", "0",
    ]  # fmt: skip
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env={**os.environ, "LOAD": json.dumps(plan)}, stdout=stream, stderr=stream
        )
    return Load(process, out, log, until)


def figures(answers: Sequence[Answer]) -> dict[str, float]:
    """Requests a second, p50 and p99 in ms, of the answers together."""
    taken = np.array([answer.ms for answer in answers])
    seconds = max(a.ended for a in answers) - min(a.began for a in answers)
    p50, p99 = np.percentile(taken, [50, 99])
    return {"per_second": len(answers) / seconds, "p50": float(p50), "p99": float(p99)}
