"""How much a YAML file may hold: looked at word by word before any of it is built.

A few lines of aliases can stand for billions of values, and brackets nested deep enough end the
process: libyaml composes by recursion and overruns the C stack, in Airflow's DAG processor too.
The parser's events come one by one, without either.
"""

from __future__ import annotations

from typing import Any

import yaml

#: Characters of a file, values it stands for with every alias written out, levels of nesting.
CHARACTERS, VALUES, LEVELS = 1 << 20, 100_000, 64
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_yaml(text: str) -> None:
    """Look whether a YAML text is small enough to be built.

    :raises ValueError: saying what is too much, and how much is allowed. What isn't YAML at all
        is left to who builds it.
    """
    if len(text) > CHARACTERS:
        raise ValueError(f"{len(text):,} characters; allowed are {CHARACTERS:,}")
    counted = _Count()
    try:
        for event in yaml.parse(text, Loader=_Loader):
            counted.take(event)
    except yaml.YAMLError:
        return


class _Count:
    """Values so far: one number for each open collection, and what every anchor stands for."""

    def __init__(self) -> None:
        self._open: list[int] = [0]
        self._names: list[str | None] = [None]
        self._anchors: dict[str, int] = {}

    def take(self, event: Any) -> None:
        """Count an event.

        :raises ValueError: when it is one too many.
        """
        if isinstance(event, yaml.CollectionStartEvent):
            self._begin(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._end()
        elif isinstance(event, yaml.ScalarEvent):
            self._add(1, event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            # An anchor that is still open, or is none, is refused where the text is built.
            self._add(self._anchors.get(event.anchor or "", 1), None)

    def _begin(self, anchor: str | None) -> None:
        self._open.append(1)
        self._names.append(anchor)
        if len(self._open) > LEVELS + 1:
            raise ValueError(f"nested more than {LEVELS} levels deep; write it flatter")

    def _end(self) -> None:
        self._add(self._open.pop(), self._names.pop())

    def _add(self, values: int, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = values
        self._open[-1] += values
        if self._open[-1] > VALUES:
            raise ValueError(
                f"more than {VALUES:,} values with its aliases written out; write less, or drop "
                "the aliases"
            )
