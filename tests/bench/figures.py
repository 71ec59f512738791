"""What a measurement gives: figures. ``python -m tests.bench.figures NAME FILE`` takes one.

Each measurement is a module with a function ``measure`` and runs in a process of its own, so that
none finds warm what another has used.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """One number, and what it should be at most.

    :ivar detail: what it was computed from, in words.
    """

    name: str
    value: float
    unit: Literal["s", "ms", "×", "%", ""]
    target: float | None = None
    detail: str = ""


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what it started is ended too
    measurement, file = sys.argv[1:]
    figures = import_module(f"tests.bench.{measurement}").measure()
    Path(file).write_text(json.dumps([asdict(figure) for figure in figures]))
