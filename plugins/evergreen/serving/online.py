"""Features by entity keys: one read of the online store a batch, and what is done without.

Feast has the newest row of each key, however old it is. Whether that may answer is decided here,
as the point-in-time join decides it offline: by its age at the row's own time. A value that is
there and null is a null; keys that aren't there, rows that are too old, and a store that doesn't
answer are met with the model's declared fallback.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any

from evergreen.declaration import Declaration
from evergreen.lifecycle.contracts import Feature
from evergreen.serving.onlinestore import PATIENCE, Key, OnlineStore, Row, View, keys_of
from evergreen.workspace import Workspace

#: Rows of views that a replica remembers for ``last_known``: some 40 MB.
REMEMBERED = 100_000


@dataclass(frozen=True)
class Looked:
    """What was found for a batch; every list has an entry a row.

    :ivar values: feature → numbers or text; None for a null, and for a row that has a problem.
    :ivar fallback: what stood in for the online store, if anything did.
    :ivar age_seconds: at the row's time, of the oldest value that was read, now or earlier.
    :ivar problem: why the row can't be answered.
    """

    values: dict[str, list[Any]]
    fallback: list[str | None]
    age_seconds: list[float | None]
    problem: list[str | None]


@dataclass(frozen=True)
class _Found:
    """A view's answer to one row: values, or a problem.

    :ivar age: seconds; None for values that were never read.
    """

    values: Mapping[str, Any]
    age: float | None = None
    fallback: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class _Strange:
    """A key of the wrong type; Feast would fail on it, and take the whole batch along."""

    said: str


class OnlineFeatures:
    """A model's features in the online store.

    Opens the store at once and reads it once, so that the first request finds it warm; a store
    that isn't there is met like one that goes away later.

    :param clock: gives the time of rows that bring none.
    :param patience: seconds that a read may take before the store counts as unreachable.
    :param remembered: rows of views that are kept for ``last_known``.
    :raises DeclarationError: when the model's feature module can't be used.
    """

    def __init__(
        self,
        declaration: Declaration,
        workspace: Workspace,
        *,
        clock: Callable[[], datetime],
        patience: float = PATIENCE,
        remembered: int = REMEMBERED,
    ) -> None:
        self._declared = declaration.serving.online
        self._clock = clock
        self._store = OnlineStore(declaration, workspace, patience=patience)
        self._memory = _Memory(remembered)
        self._lock = Lock()
        self._store.refresh()

    @property
    def names(self) -> tuple[str, ...]:
        """The features that it looks up. They change when definitions are applied anew."""
        return tuple(name for view in self._store.views for name in view.features)

    @property
    def keys(self) -> dict[str, Feature]:
        """The columns that rows are looked up by, and their types; a number is a whole one."""
        return keys_of(self._store.views)

    @property
    def problem(self) -> str | None:
        """Why the store can't be read at present; None when it could at the last try."""
        return self._store.problem

    def close(self) -> None:
        """Let the thread that reads end."""
        self._store.close()

    def lookup(self, features: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Looked:
        """Look features up for the rows of a batch; each key is read once.

        :param features: some of `names`.
        :param rows: with their entity keys, and perhaps an ``event_timestamp``: aware, or ISO text.
        :raises ValueError: for a timestamp without a zone.
        """
        with self._lock:
            self._store.refresh()
            views = self._store.views
            wanted = {v.name: [name for name in v.features if name in features] for v in views}
            looked = _blank(features, len(rows))
            now = self._clock()
            moments = [_seconds(row.get("event_timestamp"), now) for row in rows]
            batch = _Batch(keys_of(views), rows)
            read = self._store.read(batch.asked) if rows and any(wanted.values()) else {}
            for view in views:
                if wanted[view.name]:
                    self._answer(view, batch, read, moments, wanted[view.name], looked)
            if lost := [f for f in features if not any(f in names for names in wanted.values())]:
                said = f"no feature view gives {', '.join(lost)} any more"
                looked.problem[:] = [problem or said for problem in looked.problem]
            return looked

    def _answer(
        self,
        view: View,
        batch: _Batch,
        read: Mapping[str, Sequence[Row | None]] | str,
        moments: Sequence[int],
        names: Sequence[str],
        looked: Looked,
    ) -> None:
        """Fill in a view's part of the answers; rows that ask alike are decided once."""
        known: dict[tuple[Key, int], _Found] = {}
        for number, moment in enumerate(moments):
            key = batch.key(number, view)
            found = known.get((key, moment))
            if found is None:
                row = read if isinstance(read, str) else read[view.name][batch.places[number]]
                found = known[key, moment] = self._found(view, key, row, moment)
            _fill(looked, number, found, names)

    def _found(self, view: View, key: Key, read: Row | str | None, moment: int) -> _Found:
        whole = all(part is not None and not isinstance(part, _Strange) for part in key)
        if whole and isinstance(read, Row):
            self._memory.put(view, key, read)
            if view.max_age is None or moment - read.seconds <= view.max_age:
                return _Found(read.values, _age(read, moment))
        if self._declared.fallback == "defaults":
            defaults = self._declared.defaults
            return _Found({name: defaults.get(name) for name in view.features}, None, "defaults")
        said = _said(view, key, read if whole or isinstance(read, str) else None, moment)
        if self._declared.fallback == "last_known":
            if (last := self._memory.get(view, key)) is not None:
                return _Found(last.values, _age(last, moment), "last_known")
            said += "; this replica has read no earlier row"
        return _Found({}, problem=said)


class _Batch:
    """The keys of a batch's rows.

    :ivar asked: the distinct ones, as the store is asked.
    :ivar places: each row's place in ``asked``.
    """

    def __init__(self, columns: Mapping[str, Feature], rows: Sequence[Mapping[str, Any]]) -> None:
        self._columns = list(columns)
        self._keys = [tuple(_part(row.get(c), columns[c]) for c in columns) for row in rows]
        usable = [tuple(None if isinstance(p, _Strange) else p for p in k) for k in self._keys]
        self.asked = list(dict.fromkeys(usable))
        places = {key: place for place, key in enumerate(self.asked)}
        self.places = [places[key] for key in usable]

    def key(self, number: int, view: View) -> Key:
        """A row's key in a view."""
        return tuple(self._keys[number][self._columns.index(column)] for column in view.keys)


class _Memory:
    """The rows that were last read, at most ``size``; the one unused for longest goes first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: OrderedDict[tuple[str, Key], Row] = OrderedDict()

    def put(self, view: View, key: Key, row: Row) -> None:
        self._rows[view.name, key] = row
        self._rows.move_to_end((view.name, key))
        if len(self._rows) > self._size:
            self._rows.popitem(last=False)

    def get(self, view: View, key: Key) -> Row | None:
        """None when none was read, or without a feature that the view has now."""
        row = self._rows.get((view.name, key))
        if row is None or not set(view.features) <= set(row.values):
            return None
        self._rows.move_to_end((view.name, key))
        return row


def _blank(features: Sequence[str], rows: int) -> Looked:
    return Looked({f: [None] * rows for f in features}, [None] * rows, [None] * rows, [None] * rows)


def _fill(looked: Looked, number: int, found: _Found, names: Sequence[str]) -> None:
    if found.problem is not None:
        before = looked.problem[number]
        looked.problem[number] = f"{before}; {found.problem}" if before else found.problem
        return
    for name in names:
        looked.values[name][number] = found.values[name]
    looked.fallback[number] = found.fallback or looked.fallback[number]
    if found.age is not None:
        looked.age_seconds[number] = max(found.age, looked.age_seconds[number] or 0.0)


def _part(value: Any, key: Feature) -> Any:
    """One value of a key: text or a whole number of 64 bits, None where the row has none."""
    if value is None or value != value:  # noqa: PLR0124 - only NaN differs from itself
        return None
    if key.type == "string":
        return value if isinstance(value, str) and _encodes(value) else _strange(key, value)
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    return int(value) if whole and abs(value) < 1 << 63 else _strange(key, value)


def _strange(key: Feature, value: Any) -> _Strange:
    allowed = "text" if key.type == "string" else "a whole number of 64 bits"
    return _Strange(f"{key.name} is {str(value)[:50]!r}, not {allowed}")


def _encodes(text: str) -> bool:
    """JSON can spell half a character, which no store can keep."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _seconds(moment: datetime | str | None, now: datetime) -> int:
    """A row's time in whole seconds since 1970, which is what online stores keep."""
    found = now if moment is None else moment
    found = datetime.fromisoformat(found) if isinstance(found, str) else found
    if found.tzinfo is None:
        raise ValueError(f"event_timestamp {moment} has no zone; write it like 2026-01-31T12:00Z")
    return int(found.timestamp())


def _age(row: Row, moment: int) -> float:
    """How old a row was; one from after the question's time isn't younger than new."""
    return float(max(0, moment - row.seconds))


def _said(view: View, key: Key, read: Row | str | None, moment: int) -> str:
    """What was found in a view instead of a usable row."""
    parts = zip(view.keys, key, strict=True)
    named = ", ".join(
        p.said if isinstance(p, _Strange) else f"{column} {'missing' if p is None else p}"
        for column, p in parts
    )
    if read is None:
        found = "empty"
    elif isinstance(read, str):
        found = "unreachable"  # clients aren't told what the vendor says; the log is
    else:
        age, allowed = timedelta(seconds=moment - read.seconds), view.max_age or 0.0
        when = datetime.fromtimestamp(read.seconds, UTC).isoformat()
        found = f"stale: of {when}, {age} old where {timedelta(seconds=allowed)} is allowed"
    return f"features of view {view.name} for {named}: {found}"
