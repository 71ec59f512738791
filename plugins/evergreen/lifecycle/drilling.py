"""Drill a rollback: prove, beside production, that going back works and how long it takes.

A server process of the drill's own follows an alias of the drill's own in the real registry: from
the champion to the version that a rollback would restore, and back. It is asked for answers that
are known. Production's alias, its replicas, their logs and the store are never touched: the
server's spool, cache and store are a folder that goes when the drill is over.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import ServingError, TrainingError
from evergreen.ledger import records
from evergreen.ledger.tables import DrillRow, PromotionRow
from evergreen.lifecycle import registry, servers
from evergreen.lifecycle.connection import session as mlflow_session
from evergreen.lifecycle.contracts import DrillReport, FeatureSet, Origin, Rule
from evergreen.lifecycle.drill_server import PAUSE, DrillServer, drill_server
from evergreen.lifecycle.fitted import METADATA, FittedModel, input_frame, load_fitted, shaped
from evergreen.lifecycle.sets import read_rows
from evergreen.store import digest_of
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Array = np.ndarray[Any, np.dtype[Any]]

PREFIX = "drill-"
TIMEOUT = 120.0
ALIKE = 1e-9  # relative difference of answers: a server may sum in another order, no more
_ROWS = 20  # holdout rows to ask with, where a model has no examples


@dataclass(frozen=True)
class _Known:
    """A version with rows, and its answers to them as it gives them here."""

    version: str
    model: FittedModel
    rows: pd.DataFrame
    answers: Array


@dataclass
class _Drill:
    """A drill while it goes on; what it found is in ``rules``."""

    declaration: Declaration
    workspace: Workspace
    alias: str
    deadline: float
    rules: list[Rule] = field(default_factory=list)
    alike: dict[str, str] = field(default_factory=dict)


def drill(
    declaration: Declaration,
    workspace: Workspace,
    *,
    run_id: str,
    as_of: datetime | None = None,
    timeout: float = TIMEOUT,
) -> DrillReport:
    """Drill a rollback from the champion to the last verified version, and back.

    :param run_id: a finished drill is reported again, not drilled again; one that found no
        version to go back to was none.
    :param as_of: the moment it is noted with; the data watermark when None.
    :param timeout: seconds for all of it, beside at most 15 to end the server.
    :returns: a report, also of a drill that failed: with the problem.
    :raises UnavailableError: when MLflow or the ledger can't be reached.
    """
    name = declaration.name
    with workspace.ledger.read() as session:
        past = records.drills(session, name)
        live = records.champion(session, name)
        target = live and records.last_verified(session, name, besides=[live.version])
        moment = as_of or records.watermark(session, name)
    for row in past:
        if row.run_id == run_id:
            return DrillReport.model_validate(row.evidence["report"])
    if live is None or target is None:
        return _nothing_to_drill(name, live)
    alias = PREFIX + digest_of(run_id)[:12]
    others = _tidy(workspace, name, alias, past)
    try:
        report = _drilled(
            _Drill(declaration, workspace, alias, time.monotonic() + timeout), live, target
        )
    finally:
        registry.delete_alias(workspace, name, alias)
    return _record(workspace, report, run_id, moment or live.as_of, others)


def _nothing_to_drill(model: str, live: PromotionRow | None) -> DrillReport:
    problem = (
        "no version is live, so there is nothing to roll back"
        if live is None
        else f"there is no verified version to go back to besides version {live.version}, which "
        "is live: a rollback would be refused, unless a person names a version"
    )
    version = live.version if live else None
    return DrillReport(model=model, version=version, target=None, passed=False, problem=problem)


def _drilled(drill: _Drill, live: PromotionRow, target: PromotionRow) -> DrillReport:
    """Go there and back. What goes wrong is a result, but not that MLflow can't be reached."""
    from mlflow.exceptions import MlflowException

    seconds: dict[str, float] = {}
    problem = None
    try:
        here, there = (_known(drill, row) for row in (live, target))
        _point(drill, here)
        began = time.monotonic()
        left = drill.deadline - began
        with drill_server(
            drill.declaration, drill.workspace, drill.alias, drill.deadline
        ) as server:
            answers, back = f"version {here.version} answers", f"back at {here.version}"
            seconds["start"] = _reach(drill, server, here, answers, began, left)
            within = drill.declaration.serving.within.total_seconds()
            restored = f"version {there.version} restored"
            seconds["restore"] = _move(drill, server, there, restored, within)
            seconds["return"] = _move(drill, server, here, back, within)
    except (ServingError, TrainingError, MlflowException) as error:
        problem = str(error)
    if drill.alike:
        drill.rules.append(_alike(drill))
    failed = [rule for rule in drill.rules if not rule.passed]
    return DrillReport(
        model=drill.declaration.name,
        version=live.version,
        target=target.version,
        passed=problem is None and not failed,
        problem=problem or "; ".join(f"{r.name}: {r.observed}" for r in failed) or None,
        start_seconds=seconds.get("start"),
        restore_seconds=seconds.get("restore"),
        return_seconds=seconds.get("return"),
        rules=tuple(drill.rules),
    )


def _alike(drill: _Drill) -> Rule:
    wrong = {version: why for version, why in drill.alike.items() if why}
    told = "; ".join(f"version {version}: {why}" for version, why in wrong.items())
    return Rule(
        name="answers as when it was judged",
        observed=told or f"those of versions {' and '.join(drill.alike)} do",
        bound=f"relative difference at most {ALIKE:g}",
        passed=not wrong,
    )


def _known(drill: _Drill, row: PromotionRow) -> _Known:
    """A version's examples, and what it answers to them.

    :raises TrainingError: when it can't be loaded, or there are no rows to ask with.
    """
    import pandas as pd

    workspace = drill.workspace
    model = load_fitted(workspace, drill.declaration, row.model_uri)
    with registry.model_folder(workspace, row.model_uri) as folder:
        logged = registry.logged_metadata(folder).metadata or {}
    examples = logged.get(METADATA, {}).get("examples")
    if examples:
        rows = pd.DataFrame(examples)
    elif row.origin:
        learned = Origin.model_validate(row.origin).features
        feature_set = FeatureSet.load(workspace.store, learned)
        rows = read_rows(workspace.store, feature_set, "holdout").head(_ROWS)
    else:
        raise TrainingError(
            f"version {row.version} was promoted by an Evergreen that kept neither examples nor "
            "its holdout: there are no rows to ask it with. Retrain, so that a newer one is live."
        )
    frame = input_frame(rows, model.features)
    return _Known(row.version, model, frame, model.predict(frame))


def _point(drill: _Drill, known: _Known) -> None:
    registry.set_alias(drill.workspace, drill.declaration.name, drill.alias, known.version)


def _move(drill: _Drill, server: DrillServer, known: _Known, rule: str, within: float) -> float:
    """Move the alias, and wait until the server has followed.

    :returns: the seconds from before the alias moved until a right version's answer was there.
    """
    began = time.monotonic()
    _point(drill, known)
    return _reach(drill, server, known, rule, began, within)


def _reach(
    drill: _Drill, server: DrillServer, known: _Known, rule: str, since: float, within: float
) -> float:
    """Wait until a version reports itself and answers; note how long it took.

    :param since: from when on, by the monotonic clock, ``within`` seconds are counted.
    :raises ServingError: when it refuses the version, dies, or time is over.
    """
    try:
        told = _wait(drill, server, known, min(since + within, drill.deadline))
    except ServingError as error:
        told = str(error)
    took = time.monotonic() - since
    observed = told or f"after {took:.2f} s"
    drill.rules.append(
        Rule(name=rule, observed=observed, bound=f"within {within:.0f} s", passed=told is None)
    )
    if told is not None:
        raise ServingError(f"{rule}: not after {took:.1f} s: {told}")
    return took


def _wait(drill: _Drill, server: DrillServer, known: _Known, until: float) -> str | None:
    """Ask until ``known`` has answered (None) or time is over: what the server does instead."""
    while True:
        left = until - time.monotonic()
        told = _ask(drill, server, known, min(max(left, 0.5), 5.0))
        if told is None or left <= 0:
            return told
        time.sleep(PAUSE)  # between looks, until the deadline


def _ask(drill: _Drill, server: DrillServer, known: _Known, patience: float) -> str | None:
    """Ask the server once; None when ``known`` has answered, else what it does instead.

    :raises ServingError: when it is of no use to ask again.
    """
    server.check()
    (state,) = servers.states(server.declaration, timeout=patience)
    if (why := state.refuses(known.version)) is not None:
        raise ServingError(f"a server refuses version {known.version}: {why}")
    if state.version != known.version:
        return state.told()
    (said,) = servers.smoke(server.declaration, known.rows, known.version, timeout=patience)
    if said.problem is not None or said.version != known.version:
        return (
            f"it reports version {known.version}, but {said.problem or f'{said.version} answers'}"
        )
    drill.alike[known.version] = drill.alike.get(known.version) or _difference(known, said.answers)
    return None


def _difference(known: _Known, answers: Sequence[Any]) -> str:
    """How a server's answers differ from those given here; empty when they don't."""
    import numpy as np

    try:
        found = shaped(known.model.task, answers)
    except (ValueError, TypeError, IndexError) as error:
        return f"its answers can't be read: {error}"
    if found.shape != known.answers.shape:
        return f"answers of shape {found.shape}, where {known.answers.shape} is right"
    same = np.isclose(found, known.answers, rtol=ALIKE, atol=0.0).reshape(len(found), -1)
    wrong = int((~same.all(axis=1)).sum())
    return f"{wrong} of {len(found)} answers differ" if wrong else ""


def _tidy(workspace: Workspace, model: str, alias: str, past: Sequence[DrillRow]) -> list[str]:
    """Delete the aliases of killed drills: those that the last finished drill has seen as well.

    An alias has no age, and another machine may drill at this moment. A killed run that is tried
    again uses its own alias again, so only what nobody came back for is left.

    :returns: the aliases of other drills that were left alone, to be looked at next time.
    """
    with mlflow_session(workspace) as mlflow:
        found = mlflow.search_registered_models(f"name = '{model}'")
        aliases = {name for each in found if each.name == model for name in each.aliases}
    others = {name for name in aliases if name.startswith(PREFIX) and name != alias}
    stale = others & set(past[0].evidence.get("others", ()) if past else ())
    for name in sorted(stale):
        registry.delete_alias(workspace, model, name)
    return sorted(others - stale)


def _record(
    workspace: Workspace, report: DrillReport, run_id: str, as_of: datetime, others: list[str]
) -> DrillReport:
    """Keep the report, once; what was kept first is what is reported."""
    row = DrillRow(
        model=report.model,
        run_id=run_id,
        version=report.version,
        target=report.target,
        as_of=as_of,
        passed=report.passed,
        restore_seconds=report.restore_seconds,
        return_seconds=report.return_seconds,
        evidence={"report": report.to_dict(), "others": others},
    )
    with workspace.ledger.write() as session:
        kept = records.put(session, row, "model", "run_id")
        return DrillReport.model_validate(kept.evidence["report"])
