"""The stages as Airflow operators: thin, one file a stage, named as in `evergreen.lifecycle`."""

from evergreen.operators.arbitration import ArbitrateOperator, ConcludeRunOperator
from evergreen.operators.baking import BakeOperator
from evergreen.operators.compaction import CompactLogOperator
from evergreen.operators.drift import DetectDriftOperator
from evergreen.operators.escalation import EscalateOperator
from evergreen.operators.evaluation import EvaluateModelOperator
from evergreen.operators.extraction import ExtractSnapshotOperator
from evergreen.operators.gating import GateOperator
from evergreen.operators.infrastructure import CheckInfrastructureOperator
from evergreen.operators.ingestion import IngestPartitionsOperator
from evergreen.operators.monitoring import JoinLabelsOperator, RaiseSignalsOperator
from evergreen.operators.performance import MeasurePerformanceOperator
from evergreen.operators.preparation import BuildFeaturesOperator, MaterializeFeaturesOperator
from evergreen.operators.promotion import PromoteModelOperator
from evergreen.operators.rollback import DrillRollbackOperator, RollbackModelOperator
from evergreen.operators.scoring import ScoreBatchOperator
from evergreen.operators.skew import DetectSkewOperator
from evergreen.operators.training import TrainModelOperator
from evergreen.operators.validation import ValidateDataOperator

__all__ = [
    "ArbitrateOperator",
    "BakeOperator",
    "BuildFeaturesOperator",
    "CheckInfrastructureOperator",
    "CompactLogOperator",
    "ConcludeRunOperator",
    "DetectDriftOperator",
    "DetectSkewOperator",
    "DrillRollbackOperator",
    "EscalateOperator",
    "EvaluateModelOperator",
    "ExtractSnapshotOperator",
    "GateOperator",
    "IngestPartitionsOperator",
    "JoinLabelsOperator",
    "MaterializeFeaturesOperator",
    "MeasurePerformanceOperator",
    "PromoteModelOperator",
    "RaiseSignalsOperator",
    "RollbackModelOperator",
    "ScoreBatchOperator",
    "TrainModelOperator",
    "ValidateDataOperator",
]
