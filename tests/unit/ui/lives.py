"""What a model's life leaves in the ledger, with texts of one's choice; and a look at HTML."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from itertools import count
from typing import Any

from evergreen.ledger import acts, records
from evergreen.ledger.tables import (
    AnswerRow,
    DecisionRow,
    EscalationRow,
    MeasurementRow,
    PartitionRow,
    PromotionRow,
    QuarantineRow,
    VerdictRow,
)
from evergreen.workspace import Workspace

DAY = datetime(2013, 1, 2, tzinfo=UTC)
fresh = count()
BAND = {"value": 0.4, "low": 0.3, "high": 0.5}
HOSTILE = (
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=1">',
    "'><svg onload='window.hacked=1'>",
    "{{7*7}}{% for x in y %}",
    "</script></textarea></pre><script>hacked</script>",
    "[look](javascript:hacked) <javascript:hacked> javascript:hacked",
    "\u202egnp.exe \x07\x1b[31m \u0000 | # * _ ` ~ \n# Heading\n| a | b |",
    "long " * 800,
)


def go_live(
    workspace: Workspace, model: str = "example", *, text: str = "because", run: str = "run 1",
    version: str = "1", origin: dict[str, Any] | None = None, snapshot: tuple[str, str] = ("", ""),
    events: tuple[str, ...] = ("completed",),
) -> None:  # fmt: skip
    """A partition, a retrain, its verdict, and a promotion that was carried out."""
    with workspace.ledger.write() as session:
        position = int(version)
        session.add(PartitionRow(
            model=model, source="data", key=version, revision=1, start=DAY, end=DAY, digest="d",
            rows=1, late=False, files={}, maturity={},
        ))  # fmt: skip
        decision = DecisionRow(
            model=model, run_id=run, action="retrain", cause=text, causes=[text], reasons=[text],
            as_of=DAY, sequence=1, tune=False,
        )  # fmt: skip
        rule = {"name": text, "observed": text, "bound": text, "passed": False}
        verdict = VerdictRow(
            model=model, run_id=run, verdict="promote", promotes=True, reason=text, as_of=DAY,
            mlflow_run="m" * 32, rules=[rule], evidence={"primary": "log_loss"}, override=text,
        )  # fmt: skip
        promotion = PromotionRow(
            model=model, position=position, run_id=run, version=version, kind="better",
            reason=text, as_of=DAY, mlflow_run="m" * 32, model_uri=text, snapshot_uri=snapshot[0],
            snapshot_digest=snapshot[1], trained_through=DAY, origin=origin or {}, person=text,
        )  # fmt: skip
        session.add_all([decision, verdict, promotion])
        session.flush()
        records.conclude(session, decision, "promoted", text)
        for event in events:
            records.add_event(session, promotion, event, {"reason": text})


def measure(workspace: Workspace, model: str = "example", **given: Any) -> int:
    """A window measured; see `measured`. Returns the measurement's id."""
    row = measured(model, **given)
    with workspace.ledger.write() as session:
        session.add(row)
    return row.id


def measured(
    model: str = "example", *, kind: str = "drift", day: int = 1, violates: tuple[str, ...] = (),
    window: str | None = None, version: str = "1", judged: bool = True, **evidence: Any,
) -> MeasurementRow:  # fmt: skip
    """A window measured, once more each time."""
    start = DAY + timedelta(days=day)
    known = {"drift": {"share": 0.25, "share_bound": 0.3, "report": None},
             "performance": {"realised": {"log_loss": BAND}, "estimated": {}, "matured": 9,
                             "reference": {"log_loss": 0.37}, "metric": "log_loss",
                             "bound": 0.45, "basis": "realised"}}.get(kind, {})  # fmt: skip
    return MeasurementRow(
        model=model, kind=kind, window=window or f"2013-01-{day:02}", version=version, start=start,
        end=start + timedelta(days=1), as_of=start, sequence=day, digest=f"{next(fresh)}", judged=judged,
        violates=list(violates), evidence={**known, **evidence},
    )  # fmt: skip


def stop(workspace: Workspace, model: str = "example", text: str = "three were futile") -> None:
    """Automatic retraining stops; somebody has declined to let it go on."""
    with workspace.ledger.write() as session:
        decision = records.retrains(session, model)[0]
        row = EscalationRow(
            model=model, decision_id=decision.id, as_of=DAY, priority="P1", futile=3, reason=text
        )  # fmt: skip
        session.add(row)
        session.flush()
        session.add(AnswerRow(
            model=model, escalation_id=row.id, run_id="r", answer="declined", person=text,
            comment=text,
        ))  # fmt: skip


def live_with(workspace: Workspace, text: str) -> int:
    """A model whose every text is ``text``. Returns the id of its drift measurement."""
    go_live(workspace, text=text, run=f"run {text}")
    measure(workspace, kind="performance", window=text)
    drift = measure(workspace, day=2, window=text)
    stop(workspace, text=text)
    with workspace.ledger.write() as session:
        records.raise_signal(session, "example", text, text, DAY, {text: text, "rows": 5})
        acts.pause(session, "example", key="1", person=text, comment=text or "x")
        acts.act(session, "example", "2", "roll_back", text, text,
                 {"run_id": text, "family": "rollback", "version": text})  # fmt: skip
        session.add(QuarantineRow(
            model="example", version=text, promotion_id=1, run_id=text, person=text, reason=text
        ))  # fmt: skip
    return drift


@dataclass
class Seen(HTMLParser):
    """What a browser would make of a page."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def forms(self) -> dict[str, dict[str, str]]:
        """Act → the hidden fields of its form."""
        found: dict[str, dict[str, str]] = {}
        for tag, attributes in self.tags:
            if tag == "form":
                form = found.setdefault(str(attributes["action"]).rpartition("/")[2], {})
            elif tag == "input" and attributes.get("type") == "hidden":
                form[str(attributes["name"])] = str(attributes["value"])
        return found


def look(html: str) -> Seen:
    """Read a page."""
    seen = Seen()
    seen.feed(html)
    seen.close()
    return seen


def check_inert(html: str) -> Seen:
    """Nothing that was written into the page runs, loads or leads anywhere."""
    seen = look(html)
    for tag, attributes in seen.tags:
        assert tag not in {"img", "svg", "object", "embed", "base", "style"}
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "script":
            assert str(attributes["src"]).startswith("/evergreen/assets/")
        for name in ("href", "src", "action", "formaction"):
            target = attributes.get(name) or ""
            assert target.startswith(("/", "#")) or not target
            assert not target.startswith("//")
    return seen
