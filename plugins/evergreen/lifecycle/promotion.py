"""Promote: put a judged candidate live, and nothing else.

First the MLflow model version (found by its run), then the ledger's promotion: compare-and-set on
the champion the candidate was judged against. The ledger's row is the promotion; what follows
it (`evergreen.lifecycle.golive`) is carried out by whoever comes next, so a crash between any
two steps is healed by running again.
"""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError

from evergreen.declaration import Declaration
from evergreen.errors import ConflictError
from evergreen.ledger import records
from evergreen.ledger.tables import PromotionRow
from evergreen.lifecycle import registry
from evergreen.lifecycle.contracts import (
    Decision,
    FeatureSet,
    Origin,
    Promotion,
    Reference,
    TrainedModel,
    Verdict,
)
from evergreen.lifecycle.golive import carry_out
from evergreen.workspace import Workspace


def promote(
    declaration: Declaration,
    workspace: Workspace,
    decision: Decision,
    verdict: Verdict,
    trained: TrainedModel,
    snapshot: Reference,
    feature_set: FeatureSet,
    evaluation: Reference,
) -> Promotion:
    """Make a candidate champion.

    :param evaluation: what it was judged by; its holdout is what the version is watched against.
    :param trained: what ships: the judged candidate, or the same recipe refitted.
    :raises ConflictError: when another run changed the champion since this one was judged, or
        the verdict does not promote, or the run is as of an earlier moment than the champion's,
        or the version is quarantined.
    :raises ServingError: when a replica refuses the version, which is live in the ledger by then.
    """
    if not verdict.promotes:
        raise ConflictError(
            f"{declaration.name}: the verdict of {decision.run_id} is {verdict.verdict} "
            f"({verdict.reason}); only a promoting verdict can go live."
        )
    version = registry.register_version(
        workspace,
        declaration,
        trained.mlflow_run,
        trained.model_uri,
        registry.verdict_tags(verdict.verdict, verdict.reason, decision.cause, decision.run_id),
    )
    origin = Origin(
        version=version,
        trained=trained.save(workspace.store),
        features=feature_set.save(workspace.store),
        evaluation=evaluation,
    )
    row = _compare_and_set(declaration, workspace, decision, verdict, trained, snapshot, origin)
    carried = carry_out(declaration, workspace, row)
    return Promotion(
        model=declaration.name,
        version=row.version,
        position=row.position,
        replaced=row.replaced,
        as_of=row.as_of,
        mlflow_run=row.mlflow_run,
        materialized=carried.materialized,
        server=carried.server,
    )


def _compare_and_set(
    declaration: Declaration,
    workspace: Workspace,
    decision: Decision,
    verdict: Verdict,
    trained: TrainedModel,
    snapshot: Reference,
    origin: Origin,
) -> PromotionRow:
    model = declaration.name
    try:
        with workspace.ledger.write() as session:
            if (done := records.promotion_of(session, model, decision.run_id)) is not None:
                return done
            live = records.champion(session, model)
            if (live.position if live else 0) != verdict.champion_position:
                raise _conflict(model, decision.run_id, verdict, live)
            if live is not None and decision.as_of < live.as_of:
                raise ConflictError(
                    f"{model}: {decision.run_id} is as of {decision.as_of.isoformat()}, but champion "
                    f"{live.version} went live as of {live.as_of.isoformat()}: the past can't be "
                    "promoted over the present. Nothing was changed; run without an earlier As of."
                )
            if (held := records.quarantined(session, model).get(origin.version)) is not None:
                raise ConflictError(
                    f"{model}: version {origin.version} of {decision.run_id} is quarantined since it "
                    f"was rolled back ({held.reason}): no machine puts it live again. A person may, "
                    f"by `{model}.rollback` with force."
                )
            row = PromotionRow(
                model=model,
                position=verdict.champion_position + 1,
                run_id=decision.run_id,
                version=origin.version,
                replaced=live.version if live else None,
                kind=verdict.verdict,
                reason=verdict.reason,
                as_of=decision.as_of,
                mlflow_run=trained.mlflow_run,
                model_uri=trained.model_uri,
                snapshot_uri=snapshot.uri,
                snapshot_digest=snapshot.digest,
                trained_through=trained.trained_through,
                origin=origin.to_dict(),
            )
            session.add(row)
            session.flush()
            return row
    except IntegrityError:  # the other run's row was written between our look and our write
        with workspace.ledger.read() as session:
            live = records.champion(session, model)
        raise _conflict(model, decision.run_id, verdict, live) from None


def _conflict(
    model: str, run_id: str, verdict: Verdict, live: PromotionRow | None
) -> ConflictError:
    now = f"version {live.version}, promoted by {live.run_id}" if live else "none"
    return ConflictError(
        f"{model}: {run_id} was judged against champion {verdict.champion_version or 'none'}, but the "
        f"champion is now {now}. Nothing was changed; start a new run to be judged against it."
    )
