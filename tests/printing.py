"""Figures that a run is for: said by tests, printed at the end of the whole run.

Tests run in processes of their own, whose output nobody sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Figure = Callable[[str], None]
"""Takes a line, or more, that the whole run's last lines shall show."""

_NAME = "figure"


def figure_of(properties: list[tuple[str, Any]]) -> Figure:
    """What the fixture ``figure`` gives to a test whose properties these are."""
    return lambda text: properties.append((_NAME, text))


def figures_in(stats: dict[str, list[Any]]) -> list[str]:
    """All that was said, in the order of the tests' names."""
    reports = [report for found in stats.values() for report in found]
    called = [report for report in reports if getattr(report, "when", None) == "call"]
    said = [
        (report.nodeid, text)
        for report in called
        for name, text in report.user_properties
        if name == _NAME
    ]
    return [f"{node}\n  {text.strip()}" for node, text in sorted(said, key=lambda pair: pair[0])]
