"""A year that the demo has lived: what is known of it afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

MINUTES = 25  # that it may take


@dataclass(frozen=True)
class Year:
    """What `make demo` left.

    :ivar rows: its report, a month a row.
    :ivar printed: what it said.
    """

    rows: list[dict[str, Any]]
    printed: str
    home: Path
