"""Go live: what follows a row of the ledger that makes a version champion, by promotion or rollback.

Alias ``champion`` in the registry (and ``candidate`` no more, where that names this version or a
quarantined one), online features, the profile it is watched against, and then
the replicas: live means that they say so. Each step is harmless to repeat and notes itself, so
whoever comes next carries out what a killed run left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from evergreen.declaration import Declaration
from evergreen.ledger import records
from evergreen.ledger.tables import PromotionRow
from evergreen.lifecycle import features, registry, servers
from evergreen.lifecycle.contracts import FeatureSet, Origin
from evergreen.lifecycle.profiles import reference_profile
from evergreen.workspace import Workspace

OVERTAKEN = "another version went live since; nothing to wait for"


@dataclass(frozen=True)
class Carried:
    """What was done.

    :ivar materialized: view → the [start, end) put online.
    :ivar server: what the replicas say, in a sentence.
    """

    materialized: dict[str, tuple[datetime, datetime]] = field(default_factory=dict)
    server: str = OVERTAKEN


def carry_out(declaration: Declaration, workspace: Workspace, row: PromotionRow) -> Carried:
    """Make everything follow ``row``; only while it is still the newest one.

    :raises ServingError: when a replica refuses the version.
    :raises UnavailableError: when a replica doesn't report it in time; a retry waits again.
    """
    if _newest(declaration, workspace).id != row.id:
        return Carried()
    registry.set_champion(workspace, declaration, row.version)
    newest = _newest(declaration, workspace)
    if newest.id != row.id:  # overtaken between our look and our write: the alias is theirs
        registry.set_champion(workspace, declaration, newest.version)
        return Carried()
    _end_trial(declaration, workspace, row.version)
    _note(workspace, row, "aliased")
    materialized = {}
    if row.origin:  # promotions of older ledgers have none
        origin = Origin.model_validate(row.origin)
        learned = FeatureSet.load(workspace.store, origin.features)
        materialized = features.materialize(declaration, workspace, learned)
        _note(workspace, row, "materialized")
        reference_profile(declaration, workspace, origin)
        _note(workspace, row, "profiled")
    server = servers.wait_until_served(declaration, row.version)
    if declaration.serving.replicas:
        _note(workspace, row, "served")
    _note(workspace, row, "completed")
    return Carried(materialized, server)


def finish(declaration: Declaration, workspace: Workspace) -> Carried | None:
    """Carry out what a killed run left of the newest promotion or rollback; None when it is whole.

    :raises ServingError: as `carry_out`.
    :raises UnavailableError: as `carry_out`.
    """
    with workspace.ledger.read() as session:
        live = records.champion(session, declaration.name)
        if live is None or "completed" in records.events_of(session, live.id):
            return None
    return carry_out(declaration, workspace, live)


def _end_trial(declaration: Declaration, workspace: Workspace, version: str) -> None:
    """Let the alias ``candidate`` go that names the version that is live, or a quarantined one: it
    would go on answering its share."""
    tried = registry.alias_version(workspace, declaration.name, registry.CANDIDATE)
    if tried is None:
        return
    with workspace.ledger.read() as session:
        barred = records.quarantined(session, declaration.name)
    if tried == version or tried in barred:
        registry.delete_alias(workspace, declaration.name, registry.CANDIDATE)


def _newest(declaration: Declaration, workspace: Workspace) -> PromotionRow:
    with workspace.ledger.read() as session:
        live = records.champion(session, declaration.name)
    assert live is not None  # noqa: S101 - there is at least the row that is carried out
    return live


def _note(workspace: Workspace, row: PromotionRow, event: str) -> None:
    with workspace.ledger.write() as session:
        records.add_event(session, row, event, {"version": row.version})
