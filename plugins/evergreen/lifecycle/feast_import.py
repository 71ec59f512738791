"""Import Feast in a third of the time, with its checks where people write what they check.

Feast lets typeguard compile each method of its decorated classes anew at import, those of warehouses
that nobody has declared too: 2.4 of 3.4 s of CPU, in every process. Only what a feature module writes
is left checked.
"""

from __future__ import annotations

import sys
from typing import Any

#: What feature modules are made of.
CHECKED = ("Entity", "FeatureService", "FeatureView", "Field", "FileSource")


def import_feast() -> None:
    """Import it; once it is imported, nothing."""
    if "feast" in sys.modules:
        return
    import typeguard

    check = typeguard.typechecked
    # Feast takes the decorator from here, and there is no setting to turn it off; put back below. Its
    # types are those of the one use that Feast makes of it: on a class, without arguments.
    typeguard.typechecked = _unchecked  # type: ignore[assignment]
    try:
        import feast
    finally:
        typeguard.typechecked = check
    for name in CHECKED:
        check(getattr(feast, name))


def _unchecked(target: Any) -> Any:
    return target
