"""What stages hand each other: small frozen documents, written down once by digest.

A stage's result goes into the store as JSON named by its own digest; between tasks only its
`Reference` travels (kind, uri, digest). Large things inside are URIs. Every result can describe
itself in a few lines for the person who reads the task's log.
"""

from __future__ import annotations

from evergreen.lifecycle.contracts.base import Contract, Reference, Result
from evergreen.lifecycle.contracts.data import (
    Check,
    Feature,
    FeaturePart,
    FeatureSet,
    IngestReport,
    Partition,
    PartitionFile,
    Refused,
    Snapshot,
    ValidationReport,
)
from evergreen.lifecycle.contracts.decisions import (
    Action,
    Champion,
    Decision,
    Promotion,
    Rule,
    Verdict,
    VerdictName,
)
from evergreen.lifecycle.contracts.escalation import AnswerName, EscalationAnswer, EscalationReport
from evergreen.lifecycle.contracts.monitoring import (
    ColumnDrift,
    Detection,
    DetectorState,
    DriftReport,
    Interval,
    LabelReport,
    LabelsKnown,
    MonitorReport,
    Origin,
    PerformanceReport,
    RaisedSignal,
    WatchedPartition,
    Window,
    WindowDrift,
    WindowPerformance,
)
from evergreen.lifecycle.contracts.scoring import ScoredPartition, ScoreReport
from evergreen.lifecycle.contracts.serving import (
    BakeOutcome,
    BakeReport,
    Compaction,
    DrillReport,
    FeatureSkew,
    PartitionSkew,
    Rollback,
    SkewReport,
)
from evergreen.lifecycle.contracts.training import Evaluation, InfrastructureReport, TrainedModel

__all__ = [
    "Action",
    "AnswerName",
    "BakeOutcome",
    "BakeReport",
    "Champion",
    "Check",
    "ColumnDrift",
    "Compaction",
    "Contract",
    "Decision",
    "Detection",
    "DetectorState",
    "DriftReport",
    "DrillReport",
    "EscalationAnswer",
    "EscalationReport",
    "Evaluation",
    "Feature",
    "FeaturePart",
    "FeatureSet",
    "FeatureSkew",
    "InfrastructureReport",
    "IngestReport",
    "Interval",
    "LabelReport",
    "LabelsKnown",
    "MonitorReport",
    "Origin",
    "Partition",
    "PartitionFile",
    "PartitionSkew",
    "PerformanceReport",
    "Promotion",
    "RaisedSignal",
    "Reference",
    "Refused",
    "Result",
    "Rollback",
    "Rule",
    "ScoreReport",
    "ScoredPartition",
    "SkewReport",
    "Snapshot",
    "TrainedModel",
    "ValidationReport",
    "Verdict",
    "VerdictName",
    "WatchedPartition",
    "Window",
    "WindowDrift",
    "WindowPerformance",
]
