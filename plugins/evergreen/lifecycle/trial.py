"""Try a version beside the champion: in the shadow, or as canary, as `serving.candidate` declares.

A candidate can be tried before a person approves it, or though the gate was not sure of it: it is
registered then, and nothing else about it changes. Who asked for the trial, why and of what is in
the ledger; the registry's alias ``candidate`` is what replicas follow.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy.orm import Session

from evergreen.declaration import Declaration
from evergreen.errors import RefusalError
from evergreen.ledger import acts, records
from evergreen.ledger.tables import VerdictRow
from evergreen.lifecycle import registry
from evergreen.workspace import Workspace

#: Verdicts of candidates that may answer clients. The others are tried in the shadow only.
ANSWERS = frozenset({"promote", "bootstrap", "inconclusive"})


def try_version(
    declaration: Declaration,
    workspace: Workspace,
    version: str,
    *,
    key: str,
    person: str,
    reason: str,
) -> None:
    """Let replicas try a registered version.

    :param key: of the asking; with the same one it is asked once.
    :raises RefusalError: when it is the champion, quarantined, or of a verdict that lets nobody
        answer clients and a canary is declared; nothing was changed then.
    :raises UnavailableError: when the registry can't be reached.
    """
    name = declaration.name
    if version == registry.alias_version(workspace, name, registry.CHAMPION):
        raise RefusalError(f"{name}: version {version} is the champion; name another to try")
    origin = registry.version_run(workspace, name, version)
    with workspace.ledger.write() as session:
        if (held := records.quarantined(session, name).get(version)) is not None:
            raise RefusalError(
                f"{name}: version {version} is quarantined since {held.run_id}, by "
                f"{held.person or 'the machine'}: {held.reason}. It isn't tried on requests; name "
                "another version"
            )
        if records.promotion_of_version(session, name, version) is None:
            judged = records.verdict_of_candidate(session, name, origin)
            _check_mode(declaration, f"version {version}", judged)
        _record(session, declaration, "try", key, person, reason, version)
    registry.set_alias(workspace, name, registry.CANDIDATE, version)


def try_run(
    declaration: Declaration,
    workspace: Workspace,
    run_id: str,
    *,
    key: str,
    person: str,
    reason: str,
) -> str:
    """Register the candidate that a run of ``<model>.retrain`` judged, and let replicas try it.

    :param run_id: the DAG run's.
    :returns: its version; promoting it later finds this one.
    :raises RefusalError: when that run judged none, or as `try_version`.
    :raises TrainingError: when its model can't be read from MLflow.
    """
    name = declaration.name
    with workspace.ledger.read() as session:
        verdict = records.verdict_of(session, name, run_id)
        decision = records.decision_of(session, name, run_id)
    if verdict is None or decision is None:
        raise RefusalError(
            f"{name}: run {run_id!r} judged no candidate; `evergreen history {name}` names those "
            "that did"
        )
    _check_mode(declaration, f"the candidate of {run_id}", verdict)
    logged = registry.find_logged_model(workspace, verdict.mlflow_run)
    if logged is None:
        raise RefusalError(
            f"{name}: MLflow run {verdict.mlflow_run} of {run_id} holds no model any more; retrain "
            "to have one to try"
        )
    tags = registry.verdict_tags(verdict.verdict, verdict.reason, decision.cause, run_id)
    version = registry.register_version(
        workspace, declaration, verdict.mlflow_run, f"models:/{logged.model_id}", tags
    )
    try_version(declaration, workspace, version, key=key, person=person, reason=reason)
    return version


def end_trial(
    declaration: Declaration, workspace: Workspace, *, key: str, person: str, reason: str
) -> str | None:
    """Let replicas try nothing any more.

    :returns: the version that was tried; None when none was, then nothing is recorded.
    """
    tried = registry.alias_version(workspace, declaration.name, registry.CANDIDATE)
    if tried is None:
        return None
    with workspace.ledger.write() as session:
        _record(session, declaration, "end_trial", key, person, reason, tried)
    registry.delete_alias(workspace, declaration.name, registry.CANDIDATE)
    return tried


def _check_mode(declaration: Declaration, what: str, verdict: VerdictRow | None) -> None:
    """A canary answers clients, so the gate must not have been against it."""
    if declaration.serving.candidate.mode != "canary":
        return
    if verdict is None or verdict.verdict not in ANSWERS:
        found = f"is {verdict.verdict.upper()}: {verdict.reason}" if verdict else "isn't known"
        raise RefusalError(
            f"{declaration.name}: {what} may not answer clients as canary: its verdict {found}. "
            "Declare serving.candidate.mode: shadow to try it where only the log sees its answers"
        )


def _record(
    session: Session,
    declaration: Declaration,
    act: Literal["try", "end_trial"],
    key: str,
    person: str,
    reason: str,
    version: str,
) -> None:
    detail = {"version": version, "mode": declaration.serving.candidate.mode}
    acts.act(session, declaration.name, key, act, person, reason, detail)
