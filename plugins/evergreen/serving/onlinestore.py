"""Reading Feast's online store from a process that must go on when it doesn't answer.

One read a batch for all views, beside the thread that asks (see `evergreen.serving.patience`).
After a failure nobody asks until the store could be opened anew, which is tried in the background
at growing intervals; so it is when its definitions were applied again or its file was replaced,
and meanwhile what is open goes on answering. A registry on a server is asked for that every few
seconds; when it doesn't answer, what is open stays.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any, Literal

from evergreen.declaration import Declaration
from evergreen.errors import UnavailableError
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.definitions import OWN_ROW, Definitions
from evergreen.lifecycle.featurestore import REGISTRY_FILE, FeatureHome, feature_home
from evergreen.serving.patience import Beside
from evergreen.workspace import Workspace

_log = logging.getLogger(__name__)
#: Seconds that opening the store may take; it imports Feast the first time.
OPENING = 60.0
#: Seconds that one read may take before the store counts as unreachable.
PATIENCE = 1.0
#: Seconds until the next try to open it after a failure: the first pause, and the longest.
PAUSES = (0.5, 10.0)
#: Seconds between two questions to a registry on a server. Definitions change with a training: a few
#: seconds late is early, and a hundred replicas ask it 20 times a second.
LOOKS = 5.0
#: Keys of one query: databases bound the variables of a statement.
_READ_AT_ONCE = 5000

Key = tuple[Any, ...]
"""The values of `OnlineStore.keys`, in order: text or whole numbers, None where there is none."""


@dataclass(frozen=True)
class View:
    """A feature view that answers online.

    :ivar keys: column of a row → the join key that it holds; a number is a whole one.
    :ivar features: what the service takes of it.
    :ivar max_age: how old its rows may be, seconds; None for ever.
    """

    name: str
    keys: Mapping[str, Feature]
    features: tuple[str, ...]
    max_age: float | None


@dataclass(frozen=True)
class Row:
    """A view's row for a key: its event's time in seconds since 1970, its values by feature."""

    seconds: int
    values: Mapping[str, Any]


Marks = tuple[int | str, ...]
"""What tells that a registry or an online database was replaced."""

Rows = dict[str, list[Row | None]]
"""View → a row, or None, for each key that was asked."""


@dataclass(frozen=True)
class _Opened:
    """An open store, and what told it apart from others when it was opened."""

    feast: Any
    service: Any
    views: tuple[View, ...]
    marks: Marks


@dataclass
class _Attempt:
    """Opening in the background. One thread writes what it finds here; another reads it.

    :ivar opened: the open store, at the end.
    :ivar reason: why the last try failed, until one succeeds.
    :ivar tried: set after the first try, whatever came of it.
    """

    former: _Opened | None
    opened: _Opened | None = None
    reason: str | None = None
    tried: Event = field(default_factory=Event)
    cancelled: Event = field(default_factory=Event)


class OnlineStore:
    """The views of a model's feature service, as they are online.

    For one thread at a time; the properties for any.

    :raises DeclarationError: when the model's feature module can't be used.
    """

    def __init__(
        self, declaration: Declaration, workspace: Workspace, *, patience: float = PATIENCE
    ) -> None:
        self._declaration, self._workspace, self._patience = declaration, workspace, patience
        self._home = feature_home(declaration.name, workspace)
        where = workspace.feature_store or self._home.folder
        self._beside = Beside(f"the online store in {where}")
        self._opener = Beside(f"the online store in {where}")
        self._registry = _Registry(declaration.name, self._home, patience)
        self._opened: _Opened | None = None
        self._broken: str | None = None
        self._failures = 0
        self._attempt: _Attempt | None = None
        self._views = _declared(declaration)

    @property
    def views(self) -> tuple[View, ...]:
        """As registered; as the model's folder declares them until they could be read."""
        return self._views

    @property
    def keys(self) -> dict[str, Feature]:
        """The columns that rows are looked up by, and their types."""
        return keys_of(self._views)

    @property
    def problem(self) -> str | None:
        """Why the store can't be read at present; None when it could at the last try."""
        return self._broken

    def refresh(self) -> None:
        """Have the store opened when it isn't open, or was replaced.

        The first time it waits for that, `OPENING` seconds at most; after a replacement as long as
        a read may take; never for a store or a registry that didn't answer.
        """
        if self._declaration.features is None or (self._attempt and not self._take_over()):
            return
        try:
            if self._opened is not None:
                marks = _marks(self._home.files)
                if self._opened.marks[: len(marks)] != marks:
                    self._replace()
                elif self._registry.due:
                    self._begin(self._opened, 0.0)
            elif self._broken is None:
                self._opened = self._open(None)
                self._views = self._opened.views
        except Exception as error:  # noqa: BLE001 - whatever a store raises, it can't be read
            self._break(error)

    def read(self, keys: Sequence[Key]) -> Rows | str:
        """Each view's row for each key, or why the store can't be read.

        What is read where a key has None is nobody's.

        :param keys: distinct.
        """
        opened = self._opened
        if opened is None:
            return self._broken or "it isn't open"
        try:
            read = self._beside.call(lambda: _ask(opened, keys), self._patience)
        except Exception as error:  # noqa: BLE001 - whatever a store raises, it didn't answer
            return self._break(error)
        if self._broken:
            _log.info("%s: the online store answers again", self._declaration.name)
        self._broken, self._failures = None, 0
        return read

    def close(self) -> None:
        """Let the threads that read and open end."""
        if self._attempt is not None:
            self._attempt.cancelled.set()
        self._beside.close()
        self._opener.close()
        self._registry.close()

    def _replace(self) -> None:
        """Open what has taken the place of the open store."""
        self._begin(self._opened, 0.0).tried.wait(self._patience)
        if not self._take_over():
            self._opened = None
            self._note(self._broken or "it was replaced and is being opened")

    def _begin(self, former: _Opened | None, pause: float) -> _Attempt:
        """Open the store in the background, until that succeeds."""
        attempt = self._attempt = _Attempt(former)
        name = f"evergreen: open the online store of {self._declaration.name}"
        Thread(target=self._attempted, args=(attempt, pause), name=name, daemon=True).start()
        return attempt

    def _attempted(self, attempt: _Attempt, pause: float) -> None:
        while not attempt.cancelled.wait(pause):
            try:
                attempt.opened = self._open(attempt.former)
            except Exception as error:  # noqa: BLE001 - whatever a store raises, it can't be read
                attempt.reason = _said(error)
                pause = min(max(pause * 2, PAUSES[0]), PAUSES[1])
            attempt.tried.set()
            if attempt.opened is not None:
                return

    def _take_over(self) -> bool:
        """Use what was opened in the background, if anything was."""
        attempt = self._attempt
        if attempt is None or attempt.opened is None:
            if attempt and attempt.reason:  # what was open before is no more what is there
                self._opened = None
                self._note(attempt.reason)
            return False
        self._attempt, self._opened, self._views = None, attempt.opened, attempt.opened.views
        return True

    def _open(self, former: _Opened | None) -> _Opened:
        """The store as it is now; the one that is open, when that is the same."""
        marks = (*_marks(self._home.files), *self._registry.marks(opened=former is not None))
        if former is not None and former.marks == marks:
            return former
        return self._opener.call(lambda: self._open_now(marks), OPENING)

    def _open_now(self, marks: Marks) -> _Opened:
        """Open the store and read once: a first read takes as long as a hundred others."""
        from evergreen.lifecycle.features import open_store

        section, name = self._declaration.features, self._declaration.name
        feast = open_store(self._declaration, self._workspace)
        service = feast.get_feature_service(section.service if section else name)
        views = {p.name: feast.get_feature_view(p.name) for p in service.feature_view_projections}
        names = {name for view in views.values() for name in view.entities}
        entities = [feast.get_entity(name) for name in sorted(names)]
        definitions = Definitions(
            file=self._home.folder,
            entities={entity.join_key: entity for entity in entities},
            views=views,
            service=service,
            prepare={},
            requests=None,
            lookback=timedelta(0),
            digest="",
        )
        opened = _Opened(feast, service, _views(self._declaration, definitions), marks)
        _ask(opened, [(None,) * len(keys_of(opened.views))])
        return opened

    def _break(self, error: Exception) -> str:
        """Note a failure: nobody asks until the store was opened anew, after a pause that doubles."""
        reason = _said(error)
        self._note(reason)
        self._opened = None
        self._registry.forget()
        if self._attempt is not None:
            self._attempt.cancelled.set()
        self._begin(None, min(PAUSES[0] * 2.0**self._failures, PAUSES[1]))
        self._failures = min(self._failures + 1, 16)
        return reason

    def _note(self, reason: str) -> None:
        """Keep why the store can't be read, and tell each reason once."""
        if self._broken != reason:
            _log.warning("%s: the online store: %s", self._declaration.name, reason)
        self._broken = reason


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _Registry:
    """The digest in a registry on a server, asked beside the one who answers, now and then."""

    def __init__(self, model: str, home: FeatureHome, patience: float) -> None:
        self._model, self._home, self._patience = model, home, patience
        self._beside = Beside(f"the feature registry of {home.profile.file}")
        self._digest: str | None = None
        self._next = 0.0
        self._silent = False

    @property
    def due(self) -> bool:
        """Whether it is time to ask again."""
        asked = self._home.profile.registry != "file"
        return asked and (self._digest is None or monotonic() >= self._next)

    def marks(self, *, opened: bool) -> Marks:
        """The digest that is registered; the last one known, while an open store answers by it.

        :raises UnavailableError: when nothing is open, and the registry has nothing or is silent.
        """
        if self._home.profile.registry == "file":
            return ()
        if self._digest is None or monotonic() >= self._next:
            self._look(opened=opened)
        if self._digest is None:
            raise UnavailableError(f"nothing is registered for {self._model} yet, or not all of it")
        return (self._digest,)

    def forget(self) -> None:
        """Ask anew at the next chance: what was open can't be trusted."""
        self._digest = None

    def close(self) -> None:
        """Let the thread that asks end."""
        self._beside.close()

    def _look(self, *, opened: bool) -> None:
        try:
            found = self._beside.call(
                self._home.registered, OPENING if not opened else self._patience
            )
        except Exception as error:
            if not opened or self._digest is None:
                raise
            if not self._silent:
                _log.warning("%s: the feature registry: %s", self._model, error)
            self._silent = True
        else:
            self._silent = False
            # None while definitions are being registered: what is open stays as good as it was.
            self._digest = found or self._digest
        self._next = monotonic() + LOOKS


def keys_of(views: Sequence[View]) -> dict[str, Feature]:
    """The columns that views are looked up by.

    Those that a service maps to a key of another name come last: of two columns for one key Feast
    takes the last.
    """
    found = {column: key for view in views for column, key in view.keys.items()}
    return dict(sorted(found.items(), key=lambda item: item[0] != item[1].name))


def _declared(declaration: Declaration) -> tuple[View, ...]:
    if declaration.features is None:  # the one view of such a model answers only its own row
        return ()
    from evergreen.lifecycle.features import load

    return _views(declaration, load(declaration, {}))


def _views(declaration: Declaration, definitions: Definitions) -> tuple[View, ...]:
    found = []
    for projection in definitions.service.feature_view_projections:
        ttl = definitions.views[projection.name].ttl
        if ttl == OWN_ROW:
            continue
        max_age = declaration.serving.online.max_age or ttl
        keys = sorted(definitions.keys(projection.name), key=lambda key: key.name)
        found.append(
            View(
                name=projection.name,
                keys={projection.join_key_map.get(key.name, key.name): key for key in keys},
                features=tuple(field.name for field in projection.features),
                max_age=max_age.total_seconds() if max_age else None,
            )
        )
    return tuple(found)


def _marks(files: Sequence[Path]) -> Marks:
    """What tells that a local file was replaced; a registry is, an online database is written to.

    :raises FileNotFoundError: when one isn't there; opening it would make an empty one.
    """
    found = [file.stat() for file in files]
    return tuple(stat.st_ino for stat in found) + tuple(
        stat.st_mtime_ns
        for file, stat in zip(files, found, strict=True)
        if file.name == REGISTRY_FILE
    )


def _ask(opened: _Opened, keys: Sequence[Key]) -> Rows:
    read: Rows = {view.name: [] for view in opened.views}
    kinds = {column: key.type for column, key in keys_of(opened.views).items()}
    for start in range(0, len(keys) if kinds else 0, _READ_AT_ONCE):
        part = keys[start : start + _READ_AT_ONCE]
        asked = {
            column: [_nobody(kind) if key[place] is None else key[place] for key in part]
            for place, (column, kind) in enumerate(kinds.items())
        }
        answer = opened.feast.get_online_features(opened.service, asked).proto
        for view in opened.views:
            read[view.name] += _rows(answer, view)
    return read


def _nobody(kind: Literal["number", "string"]) -> str | int:
    """What Feast is asked for where a row has no key: it knows no null ones."""
    return "" if kind == "string" else 0


def _rows(answer: Any, view: View) -> list[Row | None]:
    """A view's part of Feast's answer. A row without one of the features counts as none."""
    from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

    missing = {FieldStatus.NOT_FOUND, FieldStatus.INVALID}
    names = list(answer.metadata.feature_names.val)
    vectors = [answer.results[names.index(feature)] for feature in view.features]
    statuses = zip(*(vector.statuses for vector in vectors), strict=True)
    values = zip(*(map(_plain, vector.values) for vector in vectors), strict=True)
    moments = (moment.seconds for moment in vectors[0].event_timestamps)
    return [
        None if missing & set(status) else Row(moment, dict(zip(view.features, row, strict=True)))
        for status, moment, row in zip(statuses, moments, values, strict=True)
    ]


def _plain(value: Any) -> Any:
    """A Feast value as Python's own; None for a null."""
    kind = value.WhichOneof("val")
    found = getattr(value, kind) if kind else None
    return None if isinstance(found, float) and math.isnan(found) else found
