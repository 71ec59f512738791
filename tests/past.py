"""A model's past, as its ledger has it, without anything trained: for what follows from that."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from evergreen.declaration import Declaration
from evergreen.ledger import records
from evergreen.ledger.tables import DecisionRow, MeasurementRow, PartitionRow, PromotionRow
from evergreen.lifecycle import escalation, golive, rollback
from evergreen.lifecycle.arbitration import arbitrate
from evergreen.lifecycle.contracts import AnswerName, EscalationReport, Rollback
from evergreen.workspace import Workspace

START = datetime(2013, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass
class Past:
    """A model's past, written straight into its ledger, a day at a time."""

    workspace: Workspace
    declaration: Declaration
    day: int = 0
    version: int = 0
    signals: dict[str, int] = field(default_factory=dict)

    @property
    def now(self) -> datetime:
        return START + self.day * DAY

    def window(self, *violates: str, judged: bool = True) -> str:
        """A day that the live version answered, landed and measured."""
        start, self.day = self.now, self.day + 1
        key = f"{start:%Y-%m-%d}"
        kind = "performance" if {"performance", "target", "concept"} & {*violates} else "drift"
        maturity = {self.now.isoformat(): 100}
        with self.workspace.ledger.write() as session:
            session.add(
                PartitionRow(
                    model="example", key=key, revision=1, start=start, end=self.now, digest=key,
                    rows=100, late=False, files={}, maturity=maturity, source="data",
                )
            )  # fmt: skip
            for each in ("drift", "performance"):
                session.add(
                    MeasurementRow(
                        model="example", kind=each, window=key, version=str(self.version),
                        start=start, end=self.now, as_of=self.now, sequence=self.day,
                        digest="", judged=judged, violates=[*violates] if each == kind else [], evidence={},
                    )
                )  # fmt: skip
            for cause in {"performance" if v == "performance" else "drift" for v in violates}:
                evidence = {"window": key, "version": str(self.version)}
                records.raise_signal(
                    session, "example", cause, f"{key}/{self.version}", self.now, evidence
                )
        return key

    def promote(self, run_id: str) -> None:
        with self.workspace.ledger.write() as session:
            live = records.champion(session, "example")
            position = live.position + 1 if live else 1
            self.version = position
            session.add(
                PromotionRow(
                    model="example", position=position, run_id=run_id,
                    version=str(self.version), replaced=None, kind="promote", reason="better",
                    as_of=self.now, mlflow_run="r", model_uri="u", snapshot_uri="s",
                    snapshot_digest="d", trained_through=self.now, origin={},
                )
            )  # fmt: skip

    def decide(self, run_id: str | None = None) -> Any:
        return arbitrate(self.declaration, self.workspace, run_id=run_id or f"run {self.day}")

    def retrain(self, outcome: str) -> Any:
        """Decide, and end the run so, when it is one."""
        decision = self.decide()
        if decision.action == "retrain":
            if outcome == "promoted":
                self.promote(decision.run_id)
            with self.workspace.ledger.write() as session:
                row = session.get_one(DecisionRow, decision.id)
                records.conclude(session, row, outcome, "for the test")
        return decision

    def promotion(self, version: int) -> PromotionRow:
        with self.workspace.ledger.read() as session:
            row = records.promotion_of_version(session, "example", str(version))
        assert row is not None
        return row

    def roll_back(
        self, *, person: str | None = None, version: str | None = None, run_id: str | None = None
    ) -> Rollback:
        """Return to an earlier version, where nothing has to follow the ledger's row."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(golive, "carry_out", lambda *_: golive.Carried())
            done = rollback.roll_back(
                self.declaration, self.workspace, run_id=run_id or f"rollback {self.day}",
                reason="its answers are NaN", person=person, version=version,
            )  # fmt: skip
        self.version = int(done.version)
        return done

    def verify(self) -> None:
        with self.workspace.ledger.write() as session:
            live = records.champion(session, "example")
            assert live is not None
            records.add_event(session, live, "verified", {})

    def asked(self) -> EscalationReport:
        found = escalation.open_escalation(self.declaration, self.workspace)
        assert found is not None
        return found

    def standing(self) -> escalation.Standing:
        with self.workspace.ledger.read() as session:
            return escalation.standing(session, self.declaration)

    def answer(self, said: AnswerName) -> None:
        escalation.answer(
            self.declaration, self.workspace, self.asked().id, run_id=f"answer {self.day}",
            answer=said, person="ann", comment="seen",
        )  # fmt: skip
