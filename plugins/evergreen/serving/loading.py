"""A registered version's way into this process: downloaded, checked, kept, built, warmed up.

Files are kept in a folder for each version and digest, written aside and renamed; replicas on one
machine share them. What was champion last is noted beside them, for a start without a registry.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from evergreen.declaration import Declaration
from evergreen.errors import CorruptError, TrainingError, UnavailableError
from evergreen.lifecycle import registry
from evergreen.lifecycle.fitted import METADATA, FittedModel, read_fitted
from evergreen.workspace import Workspace

#: Versions whose files are kept, besides those that are loaded.
KEPT = 5
CURRENT = "current.json"
_DIGEST = re.compile("[0-9a-f]{12,64}")


@dataclass(frozen=True)
class Version:
    """A version that answers.

    :ivar uri: what it was downloaded from.
    :ivar digest: of its files, as `registry.files_digest`.
    :ivar note: what wasn't as it should be, though it was taken.
    """

    number: str
    fitted: FittedModel
    uri: str
    digest: str
    loaded_at: datetime
    note: str | None = None


def load_version(
    declaration: Declaration, folder: Path, number: str, digest: str, *, loaded_at: datetime
) -> Version:
    """Build the model in ``folder`` from reviewed types, and warm it up.

    :raises TrainingError: when it isn't such a model, or answers its example rows with NaN or
        infinity; and whatever it raises itself.
    """
    fitted = read_fitted(folder, declaration)
    if not fitted.features:
        raise TrainingError(f"version {number} was logged without a signature of its features")
    known = (registry.logged_metadata(folder).metadata or {}).get(METADATA, {})
    note = warm_up(fitted, known.get("examples", ()))
    uri = registry.version_uri(declaration.name, number)
    return Version(number, fitted, uri, digest, loaded_at, note)


def warm_up(fitted: FittedModel, examples: Sequence[dict[str, Any]]) -> str | None:
    """Let a model answer the rows that were logged with it, together and one alone.

    :returns: what couldn't be done for a version logged without such rows.
    :raises TrainingError: for an answer that is NaN or infinite, or too few of them.
    """
    import numpy as np
    import pandas as pd

    names = [feature.name for feature in fitted.features]
    if not examples:
        try:
            fitted.predict(pd.DataFrame([dict.fromkeys(names)], columns=names))
        except Exception as error:  # noqa: BLE001 - it was never asked to answer such a row
            said = f"{type(error).__name__}: {error}"
            return f"logged without example rows, and takes no row of nothing ({said}): not warm"
        return "logged without example rows: warmed up on a row of nothing"
    rows = pd.DataFrame(list(examples), columns=names)
    for asked in (rows, rows.iloc[:1]):
        answers = fitted.predict(asked)
        good = len(answers) == len(asked) and bool(np.isfinite(answers).all())
        if not good:
            raise TrainingError(
                f"the model answers {len(asked)} of the rows that it was fitted on with "
                f"{answers.tolist()}, which are not {len(asked)} finite answers"
            )
    return None


class Cache:
    """Folders of versions' files.

    :param folder: made when it isn't there; processes may share it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)

    def find(self, number: str, digest: str) -> Path | None:
        """The files of a version, when they are here and whole; others are removed."""
        folder = self._path(number, digest)
        try:
            if registry.files_digest(folder) == digest:
                os.utime(folder)
                return folder
        except (FileNotFoundError, TrainingError):
            pass  # not here, not whole, or another replica removes it at this moment
        shutil.rmtree(folder, ignore_errors=True)
        return None

    def download(
        self, workspace: Workspace, name: str, number: str, digest: str | None
    ) -> tuple[Path, str]:
        """Keep a version's files.

        :param digest: as it was registered; None when that isn't known.
        :returns: their folder and digest.
        :raises CorruptError: when they are others than were registered.
        :raises TrainingError: when MLflow doesn't have them.
        :raises UnavailableError: when this disk doesn't keep them.
        """
        uri = registry.version_uri(name, number)
        with registry.model_folder(workspace, uri) as downloaded:
            found = _digest(uri, downloaded)
            if digest is not None and found != digest:
                raise CorruptError(
                    f"the files of {uri} hash to {found[:12]} where {digest[:12]} was registered: "
                    "they were changed. Restore them from a backup, or promote another version."
                )
            folder = self._path(number, found)
            aside = self.folder / f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}"
            shutil.copytree(downloaded, aside)
        try:
            aside.rename(folder)
        except OSError:  # another replica was faster; `find` says whether it has the same
            shutil.rmtree(aside)
        if (kept := self.find(number, found)) is None:
            raise UnavailableError(  # the registry's are whole: it is this disk
                f"{uri} can't be kept in {folder}: what was written reads otherwise"
            )
        return kept, found

    def note_champion(self, version: Version) -> None:
        """Remember who is champion."""
        note = {"version": version.number, "digest": version.digest}
        aside = self.folder / f".{CURRENT}.{os.getpid()}-{secrets.token_hex(4)}"
        aside.write_text(json.dumps(note))
        aside.replace(self.folder / CURRENT)

    def champion(self) -> tuple[str, str, Path] | None:
        """Number, digest and files of the champion noted last, when they are whole."""
        try:
            note = json.loads((self.folder / CURRENT).read_text())
            number, digest = str(note["version"]), str(note["digest"])
            folder = self.find(number, digest)
        except (FileNotFoundError, ValueError, KeyError, TypeError, CorruptError):  # none, or torn
            return None
        return (number, digest, folder) if folder else None

    def prune(self, loaded: Collection[Version]) -> None:
        """Remove all but the `KEPT` versions used last and those that are loaded."""
        used = {self._path(version.number, version.digest) for version in loaded}
        ages = {path: _used_at(path) for path in self.folder.glob("[!.]*") if path.is_dir()}
        for path in sorted(ages, key=ages.__getitem__, reverse=True)[KEPT:]:
            if path not in used:
                shutil.rmtree(path, ignore_errors=True)  # another replica may be at it as well

    def _path(self, number: str, digest: str) -> Path:
        if not (number.isdecimal() and _DIGEST.fullmatch(digest)):
            raise CorruptError(
                f"version {number!r:.80} with the digest {digest!r:.80}: MLflow, or a note in "
                f"{self.folder}, names none that Evergreen registered. Register it anew."
            )
        return self.folder / f"{number}-{digest[:12]}"


def _digest(uri: str, folder: Path) -> str:
    try:
        return registry.files_digest(folder)
    except TrainingError as error:
        raise TrainingError(f"{uri} can't be read: {error}") from error


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another replica has just removed it
        return 0.0


def _sweep(folder: Path) -> None:
    """Remove what processes that are no more had left aside."""
    for aside in folder.glob(".*-*"):
        process = aside.name.rpartition(".")[2].partition("-")[0]
        if process.isdigit() and not _runs(int(process)):
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
