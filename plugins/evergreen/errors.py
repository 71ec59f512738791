"""Everything Evergreen raises on purpose, and what an operator does with it.

    EvergreenError
    ├── DeclarationError      a model.yaml, or code it names, that can't be used
    ├── RefusalError          a result, not a crash: the task ends visibly and is not retried
    │   ├── PartitionError    a landed file that can't be registered
    │   ├── DataBlockedError  data that must not train or be scored
    │   ├── TrainingError     an estimator that can't be fitted, logged or trusted
    │   ├── ConflictError     another run changed the champion first
    │   ├── RollbackError     there is no version to go back to, or not that one
    │   ├── ServingError      a replica refused a version
    │   └── PathError         a name or address that leads out of where it belongs
    ├── CorruptError          stored bytes don't hash to their name
    ├── ExposureError         a server that would answer strangers
    ├── JoinError             a point-in-time join lost or doubled rows
    └── UnavailableError      broken infrastructure: the only thing worth a retry

A message names the thing, the place, what was found, what is allowed, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class EvergreenError(Exception):
    """Base of every error that Evergreen raises on purpose."""


class DeclarationError(EvergreenError):
    """A declaration, or the code it names, can't be used."""


class RefusalError(EvergreenError):
    """A stage declined to go on for a reason that repeating it can't change."""


class PartitionError(RefusalError):
    """A landed file is missing, unreadable, or holds rows that aren't its partition's."""


class DataBlockedError(RefusalError):
    """Data failed a check declared as blocking."""


class TrainingError(RefusalError):
    """An estimator couldn't be built, fitted, logged or loaded under the trusted list."""


class ConflictError(RefusalError):
    """The champion changed between judging a candidate and promoting it."""


class RollbackError(RefusalError):
    """There is no version to roll back to, or not the one asked for."""


class ServingError(RefusalError):
    """A serving replica refused a version that was to go live."""


class PathError(RefusalError):
    """A name or an address leads out of the folder or bucket where it belongs."""


class ExposureError(EvergreenError):
    """A server would answer whoever reaches it: nothing was started."""


class CorruptError(EvergreenError):
    """Stored bytes don't hash to their name."""


class JoinError(EvergreenError):
    """A point-in-time join did not give each row back once."""


class UnavailableError(EvergreenError):
    """A service or path couldn't be reached. Names its address; worth a retry."""


@contextmanager
def unavailable(what: str, address: str, *causes: type[Exception]) -> Iterator[None]:
    """Turn a vendor's connection errors into one that names what was reached for, and where.

    :param what: the thing, in the words of its user ("the ledger", "MLflow").
    :param address: where it was looked for; without credentials.
    :param causes: the exceptions that mean "not reachable".
    :raises UnavailableError: in place of any of ``causes``.
    """
    try:
        yield
    except causes as error:
        raise UnavailableError(
            f"{what} at {address} can't be reached: {type(error).__name__}: {error}. "
            "Check that it is up and has room, and that address and credentials are right; "
            "the task is retried."
        ) from error
