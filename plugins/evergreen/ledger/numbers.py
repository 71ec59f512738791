"""JSON with the numbers that JSON lacks: an interval without a bound is kept, by every database.

SQLite takes Python's ``NaN`` as it stands; PostgreSQL knows no such thing.
"""

from __future__ import annotations

import json
import math
from typing import Any

_MARK = "$number"
_NUMBERS = ("nan", "inf", "-inf")


def dumps(value: Any) -> str:
    """A value as JSON text; not-a-number and the infinities as ``{"$number": "nan"}``."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:  # there is one somewhere: rare, so only then the whole value is walked
        return json.dumps(_marked(value), allow_nan=False)


def loads(text: str | bytes) -> Any:
    """What `dumps` was given."""
    return json.loads(text, object_hook=_unmarked)


def _marked(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_MARK: str(value)}
    if isinstance(value, dict):
        return {key: _marked(each) for key, each in value.items()}
    return [_marked(each) for each in value] if isinstance(value, list | tuple) else value


def _unmarked(found: dict[str, Any]) -> Any:
    marked = found.keys() == {_MARK} and found[_MARK] in _NUMBERS
    return float(found[_MARK]) if marked else found
