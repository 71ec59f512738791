"""A ledger of many models with long histories, written in bulk: what pages and lists are timed on.

Every model lives the same life, shifted: windows are measured and mostly suppressed, every so often
a retrain is judged and mostly promoted. Rows have the shape and about the size of real ones.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from evergreen.ledger import Ledger
from evergreen.ledger.tables import (
    ConsumedSignalRow,
    DecisionRow,
    EscalationRow,
    MeasurementRow,
    OutcomeRow,
    PartitionRow,
    PromotionEventRow,
    PromotionRow,
    SignalRow,
    Table,
    VerdictRow,
)

TABLES: tuple[type[Table], ...] = (
    PartitionRow, SignalRow, DecisionRow, ConsumedSignalRow, OutcomeRow, VerdictRow,
    PromotionRow, PromotionEventRow, MeasurementRow, EscalationRow,
)  # fmt: skip
RETRAIN_EACH = 50
START = datetime(2023, 1, 1, tzinfo=UTC)
DIGEST = "0123456789abcdef" * 4


def model_name(number: int) -> str:
    return f"model_{number:03}"


def fill(ledger: Ledger, models: int, decisions: int, *, measured: int = 60) -> None:
    """Write ``models`` times ``decisions``. The first model has all its windows measured, the others
    the last ``measured`` ones; each `RETRAIN_EACH`-th decision trained a version.
    """
    with ledger.write() as session:
        for table, values in _life(decisions).items():
            session.execute(sa.insert(table), values)
    shift = decisions * 4  # more rows than one model has in any table
    for number in range(1, models):
        with ledger.write() as session:
            for table in TABLES:
                session.execute(_copy(table, number, number * shift, decisions - measured))


def _copy(table: type[Table], number: int, shift: int, measured_from: int) -> sa.Insert:
    """The first model's rows once more, for another one."""
    source = table.__table__
    taken: dict[str, Any] = {c.name: c for c in source.columns if c.name != "recorded_at"}
    taken["model"] = sa.literal(model_name(number))
    for name in ("id", "decision_id", "signal_id", "promotion_id", "escalation_id"):
        if name in taken:
            taken[name] = source.c[name] + shift
    rows = sa.select(*taken.values()).where(source.c.model == model_name(0))
    if table is MeasurementRow:
        rows = rows.where(source.c.sequence > measured_from)
    if table is EscalationRow and number % 10 != 3:
        rows = rows.where(sa.false())
    if table is ConsumedSignalRow:  # the last few are still open
        rows = rows.where(
            source.c.id
            <= sa.select(sa.func.max(source.c.id))
            .where(source.c.model == model_name(0))
            .scalar_subquery()
            - number % 3
        )
    return sa.insert(table).from_select(list(taken), rows)


def _life(decisions: int) -> dict[type[Table], list[dict[str, Any]]]:
    """The first model's rows."""
    model = model_name(0)
    rows: dict[type[Table], list[dict[str, Any]]] = {table: [] for table in TABLES}
    version = 0
    for step in range(decisions):
        key, begin = step + 1, START + timedelta(days=step)
        end = begin + timedelta(days=1)
        run_id, retrains = f"run_{step:05}", step % RETRAIN_EACH == 0
        window = f"{begin:%Y-%m-%d}"
        rows[PartitionRow].append(_partition(model, window, begin, end))
        cause = "drift" if step % 7 == 0 else "new_data"
        rows[SignalRow].append(
            {"id": key, "model": model, "cause": cause, "key": window, "as_of": end,
             "evidence": {"partition": window, "rows": 1000}}
        )  # fmt: skip
        rows[DecisionRow].append(_decision(key, model, run_id, end, step, retrains))
        rows[ConsumedSignalRow].append({"model": model, "signal_id": key, "decision_id": key})
        if version:
            rows[MeasurementRow] += _measured(model, window, str(version), begin, end, step)
        if not retrains:
            continue
        rows[OutcomeRow].append(
            {"model": model, "decision_id": key, "outcome": "promoted", "detail": "went live"}
        )
        rows[VerdictRow].append(_verdict(model, run_id, end, version))
        version += 1
        rows[PromotionRow].append(_promotion(version, model, run_id, end, version))
        rows[PromotionEventRow] += [
            {"model": model, "promotion_id": version, "event": event, "detail": {}}
            for event in ("aliased", "materialized", "completed", "verified")
        ]
    rows[EscalationRow].append(
        {"model": model, "cause": "futile", "decision_id": decisions,
         "as_of": START + timedelta(days=decisions), "priority": "P1", "futile": 3,
         "reason": "3 retrains in a row for drift did not help"}
    )  # fmt: skip
    return rows


def _partition(model: str, key: str, begin: datetime, end: datetime) -> dict[str, Any]:
    return {
        "model": model, "source": "data", "key": key, "revision": 1, "start": begin, "end": end,
        "digest": DIGEST, "rows": 1000, "late": False,
        "files": {"data": {"uri": f"landing/{model}/{key}.parquet", "sha256": DIGEST}},
        "maturity": {end.isoformat(): 1000},
    }  # fmt: skip


def _decision(
    key: int, model: str, run_id: str, as_of: datetime, step: int, retrains: bool
) -> dict[str, Any]:
    drift = step % 7 == 0
    return {
        "id": key, "model": model, "run_id": run_id,
        "action": "retrain" if retrains else "suppress",
        "cause": "drift" if retrains else None, "causes": ["drift"] if drift else ["new_data"],
        "reasons": [
            f"drift: {1 + drift} of the last 3 windows violate (2023-01-01), 2 needed",
            "new_data: arrived, but it is not a declared trigger",
        ],
        "as_of": as_of, "sequence": key, "until": None, "tune": False, "override": None,
        "futile": 0, "priority": "P3" if drift else None,
    }  # fmt: skip


def _verdict(model: str, run_id: str, as_of: datetime, champion: int) -> dict[str, Any]:
    rules = [
        {"name": f"rule {n}", "observed": f"log_loss improves by +0.0{n:02}", "bound": "lower end > 0",
         "passed": True}
        for n in range(17)
    ]  # fmt: skip
    reason = "better than the champion: log_loss improves by +0.027 (95% interval +0.005 to +0.055)"
    return {
        "model": model, "run_id": run_id, "verdict": "promote", "promotes": True,
        "reason": reason, "as_of": as_of, "champion_version": str(champion) if champion else None,
        "mlflow_run": f"{champion + 1:032x}", "rules": rules, "override": None,
        "evidence": {"primary": "log_loss", "difference": 0.027, "interval": [0.005, 0.055],
                     "rules": rules},
    }  # fmt: skip


def _promotion(key: int, model: str, run_id: str, as_of: datetime, version: int) -> dict[str, Any]:
    return {
        "id": key, "model": model, "position": version, "run_id": run_id, "version": str(version),
        "replaced": str(version - 1) if version > 1 else None, "kind": "promote",
        "reason": "better than the champion", "as_of": as_of, "mlflow_run": f"{version:032x}",
        "model_uri": f"models:/m-{DIGEST[:32]}", "snapshot_uri": "", "snapshot_digest": DIGEST,
        "trained_through": as_of, "origin": {}, "person": None,
    }  # fmt: skip


def _measured(
    model: str, window: str, version: str, begin: datetime, end: datetime, step: int
) -> list[dict[str, Any]]:
    value = 0.45 + 0.1 * ((step * 37) % 100) / 100
    band = {"value": value, "low": value - 0.02, "high": value + 0.02}
    metrics = dict.fromkeys(("log_loss", "roc_auc", "brier_score"), band)
    share = ((step * 53) % 60) / 100
    found = {
        "performance": {
            "window": window, "version": version, "rows": 1000, "matured": 990,
            "realised": metrics, "estimated": metrics, "reference": dict.fromkeys(metrics, 0.47),
            "naive": dict.fromkeys(metrics, 0.6),
        },
        "drift": {
            "window": window, "version": version, "rows": 1000, "share": share,
            "share_bound": 0.3, "columns": [{"column": f"feature_{n}", "distance": 0.1,
                                             "bound": 0.2, "drifted": False} for n in range(12)],
        },
    }  # fmt: skip
    return [
        {
            "model": model, "kind": kind, "window": window, "version": version, "start": begin,
            "end": end, "as_of": end, "sequence": step + 1, "digest": DIGEST, "judged": True,
            "violates": ["inputs"] if kind == "drift" and share > 0.3 else [],
            "evidence": evidence,
        }
        for kind, evidence in found.items()
    ]  # fmt: skip
