"""Which version of a model answers: the registry's aliases, followed without dropping a request.

What an alias points at is downloaded, checked against what was registered, loaded and warmed up
beside the threads that answer; only then is `Versions.champion` another object. Who answers takes
that object once a batch. A version that can't be had as it was registered, or doesn't answer, is
refused: the old one stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from evergreen.declaration import Declaration
from evergreen.lifecycle import registry
from evergreen.serving.following import Follower, Told
from evergreen.serving.loading import Cache, Version
from evergreen.workspace import Workspace

__all__ = ["Version", "Versions"]


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


class Versions:
    """The versions of one model that answer here.

    :param every: seconds between looks at an alias.
    :param clock: the time, for `Version.loaded_at`.
    """

    def __init__(
        self,
        declaration: Declaration,
        workspace: Workspace,
        *,
        alias: str = registry.CHAMPION,
        candidate_alias: str = registry.CANDIDATE,
        every: float = 1.0,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._mode = declaration.serving.candidate.mode
        cache = Cache(workspace.home / "serving" / declaration.name / "versions")

        def follower(name: str, *, lasting: bool) -> Follower:
            return Follower(
                declaration,
                workspace,
                cache,
                alias=name,
                lasting=lasting,
                others=lambda: (self._champion.version, self._candidate.version),
                clock=clock,
                every=every,
            )

        self._champion = follower(alias, lasting=True)
        self._candidate = follower(candidate_alias, lasting=False)

    @property
    def champion(self) -> Version | None:
        """Who answers; None until one could be loaded."""
        return self._champion.version

    @property
    def candidate(self) -> Version | None:
        """Who is tried beside the champion; None when the alias points at the champion itself."""
        found, champion = self._candidate.version, self._champion.version
        same = found is not None and champion is not None and found.number == champion.number
        return None if same else found

    def start(self, timeout: float = 60.0) -> None:
        """Begin to follow the aliases, and wait for the first look at the champion's.

        :param timeout: seconds to wait at most; what takes longer goes on by itself.
        """
        self._champion.start()
        self._champion.looked.wait(timeout)
        self._candidate.start()

    def stop(self) -> None:
        """End following. The versions stay as they are."""
        self._champion.stop()
        self._candidate.stop()

    def wait_ready(self, timeout: float) -> bool:
        """Wait until there is a champion, for so many seconds; whether there is."""
        return self._champion.ready.wait(timeout)

    def state(self) -> dict[str, Any]:
        """What ``GET /version`` says of the model.

        ``refused`` is of the champion's alias only: what the candidate's points at is no
        champion's trouble. ``notes`` tells, by version, what wasn't as it should be though the version was taken.
        """
        champion, candidate, told = self.champion, self.candidate, self._champion.told
        tried = self._candidate.told
        loaded = [version for version in (champion, candidate) if version]
        return {
            "version": champion and champion.number,
            "wanted": told.wanted,
            "candidate": candidate and candidate.number,
            "mode": self._mode,
            "refused": _reasons(told),
            "candidate_refused": _reasons(tried),
            "registry_problem": told.problem or tried.problem,
            "from_cache": told.from_cache,
            "loaded_at": champion.loaded_at.isoformat() if champion else None,
            "notes": {version.number: version.note for version in loaded if version.note},
        }


def _reasons(told: Told) -> dict[str, str]:
    """The refused version of an alias, and why."""
    return {told.refused.version: told.refused.reason} if told.refused else {}
