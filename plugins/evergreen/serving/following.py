"""Following one alias of the registry: looking, fetching, swapping, refusing.

Each alias has a thread of its own, so that a candidate that takes long to load, or never does,
delays no change of the champion. Whatever may hang, MLflow, a download, a model's first answer,
is called beside that thread (see `evergreen.serving.patience`), which goes on looking.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import import_module
from pathlib import Path
from threading import Event, Thread
from time import monotonic

from evergreen.declaration import Declaration
from evergreen.errors import EvergreenError, UnavailableError
from evergreen.lifecycle import registry
from evergreen.lifecycle.connection import address
from evergreen.serving.loading import Cache, Version, load_version
from evergreen.serving.patience import Beside
from evergreen.workspace import Workspace

_log = logging.getLogger(__name__)
#: Seconds that MLflow has to answer; longer than `evergreen.lifecycle.connection` knocks at it.
LOOKING = 10.0
#: Seconds that a version's download has, and its loading with its first answers.
DOWNLOADING, LOADING = 120.0, 60.0
#: The longest pause between looks at a registry that doesn't answer, seconds.
SLOWEST = 10.0
#: Seconds until a refused version is tried again while its alias stays: at first, and at most.
AGAIN = (15.0, 900.0)
_ENDING = 2.0


@dataclass(frozen=True)
class Refusal:
    """A version that wasn't taken: why, and when it is tried again (`monotonic`)."""

    version: str
    reason: str
    pause: float
    until: float


@dataclass(frozen=True)
class Told:
    """What the last look found; replaced as a whole.

    :ivar wanted: the version that the alias points at.
    :ivar problem: why the registry couldn't be asked, or its version not be had here for now.
    :ivar lacking: the wanted version, when the last attempt at it ended in such a problem.
    :ivar from_cache: whether the version was loaded without asking the registry.
    """

    wanted: str | None = None
    problem: str | None = None
    lacking: str | None = None
    from_cache: bool = False
    refused: Refusal | None = None


class Follower:
    """The version that an alias points at, as soon as it can answer.

    :ivar version: who answers; one object replaces the other.
    :param lasting: whether a version stays until another can take its place, and comes from the
        cache when the registry doesn't answer at the start.
    :param others: versions that are loaded for another alias, to be used again.
    """

    def __init__(
        self,
        declaration: Declaration,
        workspace: Workspace,
        cache: Cache,
        *,
        alias: str,
        lasting: bool,
        others: Callable[[], tuple[Version | None, ...]],
        clock: Callable[[], datetime],
        every: float,
    ) -> None:
        self.version: Version | None = None
        self.told = Told()
        self.looked, self.ready = Event(), Event()
        self._declaration, self._workspace, self._cache = declaration, workspace, cache
        self._alias, self._lasting, self._others = alias, lasting, others
        self._clock, self._every = clock, every
        self._former: Version | None = None
        self._mlflow, self._model = Beside("MLflow"), Beside("the model")
        self._stopping = Event()
        self._thread = Thread(
            target=self._run, name=f"evergreen: {declaration.name}@{alias}", daemon=True
        )
        self._failures = 0
        self._attempted: str | None = None

    @property
    def loaded(self) -> tuple[Version, ...]:
        """The versions in memory: the one that answers and the one before, to go back at once."""
        return tuple(version for version in (self.version, self._former) if version)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what hangs beside it is left to itself."""
        self._stopping.set()
        self._mlflow.close()
        self._model.close()
        if self._thread.is_alive():
            self._thread.join(_ENDING)

    def _run(self) -> None:
        _import()
        pause = 0.0
        while not self._stopping.wait(pause):
            try:
                pause = self.look()
            except Exception as error:  # noqa: BLE001 - this thread outlives whatever comes; logged
                _log.exception("%s@%s", self._declaration.name, self._alias)
                self.told = replace(self.told, problem=_said(error))
                pause = SLOWEST
            self.looked.set()

    def look(self) -> float:
        """Look at the alias once, and follow it.

        :returns: seconds until the next look.
        """
        name = self._declaration.name
        try:
            wanted = self._mlflow.call(lambda: _alias(self._workspace, name, self._alias), LOOKING)
            self._follow(wanted)
        except Exception as error:  # noqa: BLE001 - MLflow's plugins raise anything; told in state
            self._unreachable(error)
            self._failures = min(self._failures + 1, 16)
            return min(self._every * 2.0**self._failures, SLOWEST)
        self._failures = 0
        return self._every

    def _follow(self, wanted: str | None) -> None:
        """Take the version that is wanted, unless it answers already or was just refused.

        :raises UnavailableError: when it can't be had for now.
        """
        refused = self.told.refused
        refused = refused if refused and refused.version == wanted else None
        if self._lasting and wanted is None and (self.told.wanted or not self.looked.is_set()):
            _log.warning("%s: no version has the alias %s", self._declaration.name, self._alias)
        lacking = self.told.lacking if self.told.lacking == wanted else None
        problem = self.told.problem if lacking else None  # it stands until the next attempt's end
        self.told = Told(wanted, problem, lacking, self.told.from_cache, refused)
        if not self._lasting and self.version and self.version.number != wanted:
            self.version = self._former = None
        if wanted is None:
            return
        if self._answers(wanted):
            self.told = replace(self.told, refused=None, problem=None, lacking=None)
        elif refused is None or monotonic() >= refused.until:
            self._take(wanted, refused)

    def _answers(self, number: str) -> bool:
        """Whether a version answers that the registry has confirmed."""
        found = self.version
        return found is not None and found.number == number and not self.told.from_cache

    def _take(self, number: str, refused: Refusal | None) -> None:
        """Let a version answer, or refuse it for what is its own fault.

        :raises UnavailableError: for what is the network's or this replica's.
        """
        try:
            version = self._obtained(number)
        except UnavailableError:
            self.told = replace(self.told, lacking=number)
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises is its own fault
            self._refuse(number, error, refused)
            self.told = replace(self.told, problem=None, lacking=None)
        else:
            self.told = replace(self.told, problem=None, lacking=None)
            self._swap(version)
            self.told = replace(self.told, from_cache=False, refused=None)

    def _obtained(self, number: str) -> Version:
        """The version as it was registered, ready to answer."""
        workspace, name = self._workspace, self._declaration.name
        with _fetching(number):
            tag = self._mlflow.call(
                lambda: registry.registered_digest(workspace, name, number), LOOKING
            )
            if tag and (version := self._known(number, tag)):
                return version
            folder, digest = self._cache.find(number, tag) if tag else None, tag
            if folder is None or digest is None:
                folder, digest = self._mlflow.call(
                    lambda: self._cache.download(workspace, name, number, tag), DOWNLOADING
                )
        version = self._known(number, digest) or self._loaded(number, digest, folder)
        return version if tag else _unverified(version)

    def _known(self, number: str, digest: str) -> Version | None:
        """A version that is in memory already."""
        for version in (*self.loaded, *self._others()):
            if version and (version.number, version.digest) == (number, digest):
                return version
        return None

    def _loaded(self, number: str, digest: str, folder: Path) -> Version:
        """A version built from its files.

        :raises UnavailableError: when this replica hasn't the time, the memory or the files for
            it; whatever else it raises is the model's.
        """
        now = self._clock()
        if number != self._attempted:  # calls to another that still hang are none of this one's
            self._model.close()
            self._model, self._attempted = Beside("the model"), number
        try:
            return self._model.call(
                lambda: load_version(self._declaration, folder, number, digest, loaded_at=now),
                LOADING,
            )
        except (UnavailableError, OSError, MemoryError) as error:
            said = f"version {number} can't be loaded here for now: {_said(error)}"
            raise UnavailableError(said) from error

    def _swap(self, version: Version) -> None:
        if version is not self.version:
            self._former, self.version = self.version if self._lasting else None, version
            _log.info("%s@%s: version %s", self._declaration.name, self._alias, version.number)
        self.ready.set()
        if self._lasting:
            self._cache.note_champion(version)
        self._cache.prune([v for v in (*self.loaded, *self._others()) if v])

    def _refuse(self, number: str, error: Exception, before: Refusal | None) -> None:
        """Leave a version alone until its alias comes back to it, or for a while, which doubles."""
        pause = min(before.pause * 2, AGAIN[1]) if before else AGAIN[0]
        reason = _said(error)
        _log.warning("%s: version %s is refused: %s", self._declaration.name, number, reason)
        refused = Refusal(number, reason, pause, monotonic() + pause)
        self.told = replace(self.told, refused=refused)

    def _unreachable(self, error: Exception) -> None:
        if self._stopping.is_set():  # nobody waited for the answer any more
            return
        if self.told.problem is None:
            _log.warning("%s@%s: %s", self._declaration.name, self._alias, error)
        self.told = replace(self.told, problem=_said(error))
        if self._lasting and self.version is None:
            self._start_from_cache()

    def _start_from_cache(self) -> None:
        """Load what was champion when the registry was last heard."""
        noted, refused = self._cache.champion(), self.told.refused
        if noted is None or (refused and monotonic() < refused.until):
            return
        number, digest, folder = noted
        try:
            version = self._loaded(number, digest, folder)
        except UnavailableError as error:
            self.told = replace(self.told, problem=f"{self.told.problem}; {error}")
            return
        except Exception as error:  # noqa: BLE001 - whatever a model raises is its own fault
            self._refuse(number, error, refused)
            return
        self._swap(version)
        self.told = replace(self.told, wanted=self.told.wanted or number, from_cache=True)


def _import() -> None:
    """What the first look and the first version need: seconds that no call's patience covers.

    skops first: it asks every module that is there for SciPy's functions.
    """
    for module in ("skops.io", "mlflow.artifacts", "pandas", "sklearn.pipeline"):
        import_module(module)


@contextmanager
def _fetching(number: str) -> Iterator[None]:
    """Our own errors say whose fault it is; any other, on the way, is the network's or the disk's.

    :raises UnavailableError: in place of any other.
    """
    try:
        yield
    except EvergreenError:
        raise
    except Exception as error:  # MLflow's plugins raise anything; raised on, as what it means here
        said = f"version {number} can't be fetched for now: {_said(error)}"
        raise UnavailableError(said) from error


def _unverified(version: Version) -> Version:
    said = "registered without a digest of its files: taken as they are"
    if version.note and said in version.note:
        return version
    return replace(version, note=f"{said}; {version.note}" if version.note else said)


def _said(error: Exception) -> str:
    """A reason to read: our own errors say what happened, others need their name."""
    return str(error) if isinstance(error, EvergreenError) else f"{type(error).__name__}: {error}"


def _alias(workspace: Workspace, name: str, alias: str) -> str | None:
    """The version that an alias points at.

    :raises UnavailableError: also where MLflow's own file is gone: MLflow would make an empty one.
    """
    import sqlalchemy as sa

    uri = workspace.tracking_uri
    file = sa.make_url(uri).database if uri.startswith("sqlite") else None
    if file and not Path(file).is_file():
        raise UnavailableError(f"MLflow at {address(uri)} can't be reached: there is no such file")
    return registry.alias_version(workspace, name, alias)
