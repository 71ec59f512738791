"""Replay history through a running Airflow: land one partition after the other, wait, report.

The ledger says when a partition is settled: it is registered, the champion has scored it, it was
watched, the arbiter has decided on it and that decision's run has ended. Airflow is only asked whether a
run failed. Landing and triggering are harmless to repeat, so a broken replay goes on where it
stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.airflow_client import FINISHED, AirflowClient
from evergreen.declaration import Declaration
from evergreen.errors import EvergreenError
from evergreen.ledger import records
from evergreen.ledger.tables import DecisionRow, MeasurementRow, PartitionRow, ScoreRow
from evergreen.lifecycle.contracts import Partition
from evergreen.lifecycle.labels import labels_of
from evergreen.lifecycle.rows import MAIN, normalise_times, read_file
from evergreen.lifecycle.watched import known_labels
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy.orm import Session

POLL = 0.5  # seconds between looks: each is work for Airflow
FAMILIES = ("ingest", "score", "monitor", "retrain")
PARSED = 120.0  # seconds until Airflow knows the model's DAGs


class ReplayError(EvergreenError):
    """The replay can't go on; says which run to look at."""


@dataclass(frozen=True)
class Row:
    """What became of one partition.

    :ivar drift: the importance-weighted share of drifted inputs; None when it wasn't watched.
    :ivar violates: what was beyond its bound: ``inputs``, ``prediction``, ``performance``, …
    :ivar estimated: the primary metric as it was estimated before labels.
    :ivar priority: how urgent it is for a person, when the arbiter had decided.
    :ivar metrics: of the champion that was live when the partition began, and of the very first
        version (``frozen``), on the partition's labelled rows.
    :ivar champion_version: the version live after the partition's decision.
    """

    partition: str
    rows: int
    drift: float | None
    violates: list[str]
    estimated: float | None
    cause: str | None
    decision: str
    priority: str | None
    verdict: str | None
    reason: str
    champion_version: str | None
    scored_by: str | None
    metrics: dict[str, dict[str, float]]
    seconds: float


class Replay:
    """A model's history, ready to be landed.

    :param datasets: source → Parquet or CSV file with all of its rows; the model's own table
        is ``data``.
    :param timeout: seconds one partition may take.
    """

    def __init__(
        self,
        declaration: Declaration,
        workspace: Workspace,
        airflow: AirflowClient,
        datasets: Mapping[str, Path],
        *,
        until: datetime | None = None,
        timeout: float = 900.0,
    ) -> None:
        self.declaration = declaration
        self.workspace = workspace
        self.airflow = airflow
        self.datasets = dict(datasets)
        self.until = until
        self.timeout = timeout

    @cached_property
    def cuts(self) -> dict[str, dict[str, pd.DataFrame]]:
        """Partition key → source → rows, by event time.

        :raises ReplayError: when a source has no dataset.
        """
        lacking = {MAIN, *self.declaration.data.sources} - set(self.datasets)
        if lacking:
            raise ReplayError(
                f"{self.declaration.name} has the sources {', '.join(self.declaration.data.sources)}; "
                f"no dataset was given for {', '.join(sorted(lacking))}"
            )
        tables = {source: self._cut(source) for source in self.datasets}
        return {
            key: {s: cut[key] for s, cut in tables.items() if key in cut}
            for key in sorted(tables[MAIN])
        }

    def run(self) -> Iterator[Row]:
        """Land, wait and report, partition by partition, oldest first.

        Nothing lands before Airflow knows all DAGs of the model: an event that comes before the DAG
        that waits for it starts nothing.

        :raises AirflowError: when one of them isn't there in time.
        :raises ReplayError: when a run failed, or a partition isn't settled in time.
        """
        for family in FAMILIES:
            self.airflow.wait_for_dag(
                f"{self.declaration.name}.{family}", min(self.timeout, PARSED)
            )
        for key, frames in self.cuts.items():
            started = time.monotonic()
            self._land(key, frames)
            self.airflow.trigger(f"{self.declaration.name}.ingest", f"replay__{key}")
            self._settle(key)
            yield self._row(key, time.monotonic() - started)

    def _cut(self, source: str) -> dict[str, pd.DataFrame]:
        path, data = self.datasets[source], self.declaration.data
        frame = normalise_times(self.declaration, source, read_file(path, str(path)), str(path))
        column = data.event_timestamp if source == MAIN else data.sources[source].event_timestamp
        frame = frame[frame[column].notna()]
        if self.until is not None:
            frame = frame[frame[column] < self.until]
        keys = frame[column].dt.strftime(data.partition.pattern)
        return {str(key): rows for key, rows in frame.groupby(keys, sort=True)}

    def _land(self, key: str, frames: Mapping[str, pd.DataFrame]) -> None:
        data = self.declaration.data
        for source, rows in frames.items():
            uri = data.uri if source == MAIN else data.sources[source].uri
            target = self.workspace.store.path(
                self.workspace.landing_uri(uri).replace("{partition}", key)
            )
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.parent / f".{target.name}.landing"
            with aside.open("wb") as stream:
                if uri.endswith(".csv"):
                    rows.to_csv(stream, index=False)
                else:
                    rows.to_parquet(stream, index=False)
            aside.rename(target)

    def _settle(self, key: str) -> None:
        deadline, asked = time.monotonic() + self.timeout, 0.0
        while not self._settled(key):
            now = time.monotonic()
            if now > deadline:
                raise ReplayError(
                    f"{key} was not settled within {self.timeout:g} s. Look at the runs of "
                    f"{self.declaration.name} in Airflow at {self.airflow.url}."
                )
            if now - asked > 5:
                self._raise_failures(key)
                asked = now
            time.sleep(POLL)

    def _settled(self, key: str) -> bool:
        with self.workspace.ledger.read() as session:
            partition = self._partition(session, key)
            if partition is None:
                return False
            decision = self._decision(session, partition)
            if decision is None:
                return False
            if decision.action == "retrain" and records.outcome_of(session, decision.id) is None:
                return False
            first = records.first_promotion(session, self.declaration.name)
            needs_score = first is not None and first.as_of <= partition.start
            if needs_score and self._score(session, key) is None:
                return False
        return not self._busy()

    def _busy(self) -> bool:
        """Whether something is still scored or watched: the arbiter will be asked once more."""
        runs = (self.airflow.dag_runs(f"{self.declaration.name}.{f}") for f in ("score", "monitor"))
        return any(run["state"] not in FINISHED for family in runs for run in family)

    def _raise_failures(self, key: str) -> None:
        name = self.declaration.name
        ingest = self.airflow.dag_run(f"{name}.ingest", f"replay__{key}")
        failed = [ingest] if ingest["state"] == "failed" else []
        failed += [
            run
            for family in ("score", "monitor")
            for run in self.airflow.dag_runs(f"{name}.{family}")
            if run["state"] == "failed"
        ]
        for run in failed:
            raise ReplayError(
                f"{run['dag_id']} failed in {run['dag_run_id']}; its log says why: "
                f"{self.airflow.url}/dags/{run['dag_id']}/runs/{run['dag_run_id']}"
            )

    def _partition(self, session: Session, key: str) -> PartitionRow | None:
        rows = records.latest_partitions(session, self.declaration.name)
        return next((row for row in rows if row.key == key), None)

    def _decision(self, session: Session, partition: PartitionRow) -> DecisionRow | None:
        """The first decision that knew the partition, and what monitoring found in it."""
        name = self.declaration.name
        rows = (entry["decision"] for entry in records.history(session, name))
        seen = records.first_measured(session, name, partition.key)
        knew = (row for row in rows if row.sequence >= partition.id)
        return next((row for row in knew if seen is None or row.recorded_at >= seen), None)

    def _score(self, session: Session, key: str) -> ScoreRow | None:
        rows = records.scores(session, self.declaration.name)
        return next((row for row in reversed(rows) if row.partition == key), None)

    def _row(self, key: str, seconds: float) -> Row:
        name = self.declaration.name
        with self.workspace.ledger.read() as session:
            partition = self._partition(session, key)
            assert partition is not None  # noqa: S101 - it is settled
            decision = self._decision(session, partition)
            assert decision is not None  # noqa: S101 - it is settled
            verdict = records.verdict_of(session, name, decision.run_id)
            outcome = records.outcome_of(session, decision.id)
            live = records.champion(session, name, decision.as_of)
            score = self._score(session, key)
            watched = [m for m in records.measurements(session, name) if m.window == key]
        reason = (
            verdict.reason
            if verdict
            else outcome.detail
            if outcome
            else "; ".join(decision.reasons)
        )
        return Row(
            partition=key,
            rows=partition.rows,
            **_seen(watched, self.declaration.primary.name),
            cause=decision.cause,
            decision=decision.action,
            priority=decision.priority,
            verdict=verdict.verdict if verdict else (outcome.outcome if outcome else None),
            reason=reason,
            champion_version=live.version if live else None,
            scored_by=score.version if score else None,
            metrics=self._metrics(Partition.from_row(partition), score),
            seconds=round(seconds, 1),
        )

    def _metrics(self, partition: Partition, score: ScoreRow | None) -> dict[str, dict[str, float]]:
        if score is None:
            return {}
        return {"champion": score.metrics, "frozen": self._frozen(partition, score)}

    @cached_property
    def _first(self) -> Any:
        from evergreen.lifecycle.fitted import load_fitted

        with self.workspace.ledger.read() as session:
            first = records.first_promotion(session, self.declaration.name)
        return load_fitted(self.workspace, self.declaration, first.model_uri) if first else None

    def _frozen(self, partition: Partition, score: ScoreRow) -> dict[str, float]:
        """What the first version would have shown on the rows the champion answered."""
        from evergreen.lifecycle.scoring import answers_of, realised

        store = self.workspace.store
        with self.workspace.ledger.read() as session:
            through = records.sequence(session, self.declaration.name)
        every = labels_of(self.declaration, self.workspace, partition, through)
        known = known_labels(every, partition.end).set_index("row_id")
        rows = store.get_table(score.uri).join(known, on="row_id")
        answers = answers_of(self._first, self.declaration.name, rows)
        return realised(self.declaration, self._first, rows, answers, partition.end)


def _seen(rows: Sequence[MeasurementRow], primary: str) -> dict[str, Any]:
    """What monitoring found in a window."""
    drift = next(
        (row.evidence["share"] for row in rows if row.kind == "drift" and row.judged), None
    )
    estimates = [row.evidence["estimated"] for row in rows if row.kind == "performance"]
    estimated = estimates[-1].get(primary) if estimates else None
    return {
        "drift": drift,
        "violates": sorted({found for row in rows for found in row.violates}),
        "estimated": estimated and estimated["value"],
    }
