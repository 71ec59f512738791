"""Train elsewhere: what a training container is told, what it does, and what it leaves behind.

The container runs the very `evergreen.lifecycle.training.train` that a task runs, on the same
references, with the same store and MLflow, and under the same key: so it doesn't matter which of
the two trains, nor how often the container was started. Its folder is laid out as SageMaker's
contract says: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo.html

=====================================  =====================================================
``input/config/hyperparameters.json``  the order, a JSON object of strings
``model/evergreen.json``               the reference of the result; SageMaker packs the folder
``output/failure``                     why there is none; SageMaker shows its start as the reason
=====================================  =====================================================

An exit code of 0 says that the result is written, any other that it isn't.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Self

from evergreen.declaration import Declaration, DeclarationError, read_declaration
from evergreen.errors import CorruptError, RefusalError
from evergreen.lifecycle.contracts import Decision, FeatureSet, Reference, TrainedModel
from evergreen.lifecycle.contracts.base import Contract
from evergreen.lifecycle.elsewhere import check_reachable
from evergreen.lifecycle.modules import code_digest
from evergreen.lifecycle.training import train
from evergreen.store import digest_of
from evergreen.workspace import Workspace

#: SageMaker's folder in a container.
ROOT = Path("/opt/ml")
RESULT = "evergreen.json"
#: Begins the reason for a failure that repeating the job can't change.
REFUSED = "evergreen refused: "
# SageMaker's bounds: of a hyperparameter, and of the reason that it shows.
_LONGEST_VALUE = 2500
_LONGEST_REASON = 1024
#: The packed model folder holds a reference only: bytes beyond these are not Evergreen's.
LARGEST_ARCHIVE = 1 << 20


class TrainingOrder(Contract):
    """What a container is to train, and where it finds and leaves things. No secrets.

    ``code_digest`` is of the model's folder where the order was written: the image must hold the
    same. ``store`` and ``tracking`` are addresses that both sides reach.
    """

    model: str
    decision: Reference
    features: Reference
    code_digest: str
    store: str
    tracking: str
    lineage: dict[str, str]

    @classmethod
    def write(
        cls,
        declaration: Declaration,
        workspace: Workspace,
        *,
        decision: Reference,
        features: Reference,
        lineage: Mapping[str, str],
    ) -> Self:
        """The order for a decision's features.

        :raises DeclarationError: when the store or MLflow can't be reached from another machine,
            or only with a secret in its address.
        """
        check_reachable(workspace)
        return cls(
            model=declaration.name,
            decision=decision,
            features=features,
            code_digest=code_digest(declaration),
            store=workspace.store.root,
            tracking=workspace.tracking_uri,
            lineage=dict(lineage),
        )

    def hyperparameters(self) -> dict[str, str]:
        """The order as strings, each within SageMaker's bound.

        :raises DeclarationError: when one is longer.
        """
        found = {
            name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            for name, value in self.to_dict().items()
        }
        for name, value in found.items():
            if len(value) > _LONGEST_VALUE:
                raise DeclarationError(
                    f"{self.model}: {name} has {len(value):,} characters, and SageMaker takes "
                    f"{_LONGEST_VALUE:,} for a hyperparameter: {value[:80]}…"
                )
        return found

    def is_met_by(self, hyperparameters: Mapping[str, str]) -> bool:
        """Whether a job that was ordered with these trains what this order says.

        Who asks, and from which commit, is read anew at each try and may have changed since: what
        decides is the code's digest.
        """
        said = self.hyperparameters()
        asked = {name: value for name, value in hyperparameters.items() if name != "lineage"}
        return asked == {name: value for name, value in said.items() if name != "lineage"}

    @classmethod
    def read(cls, hyperparameters: Mapping[str, str]) -> Self:
        """The order that `hyperparameters` wrote.

        :raises DeclarationError: when it is none.
        """
        nested = {"decision", "features", "lineage"}
        try:
            return cls.model_validate(
                {
                    name: json.loads(value) if name in nested else value
                    for name, value in hyperparameters.items()
                }
            )
        except (ValueError, TypeError) as error:
            raise DeclarationError(
                f"the hyperparameters {sorted(hyperparameters)} are no order of Evergreen's: "
                f"{error}. The job is submitted by the train task, not by hand."
            ) from error

    def job_name(self, run_id: str, attempt: int) -> str:
        """The name of a job: the same for the same run of the same deployment and attempt.

        A name is used once in an account and region, so two deployments' must differ.

        :param run_id: the decision's.
        :param attempt: 1 for the first job; a failed one's name can't be used again.
        """
        digest = digest_of([self.store, self.tracking, self.model, run_id])[:16]
        return f"evergreen-{self.model.replace('_', '-')[:32].rstrip('-')}-{digest}-{attempt}"


def run_order(order: TrainingOrder, models: Path) -> TrainedModel:
    """Train what an order says.

    :param models: the image's folder of model folders.
    :raises DeclarationError: when the image doesn't hold the model, or another state of it.
    :raises TrainingError: as `evergreen.lifecycle.training.train`.
    """
    declaration = read_declaration(models / order.model)
    if (found := code_digest(declaration)) != order.code_digest:
        raise DeclarationError(
            f"{models / order.model}: the image holds the model as {found[:12]}, ordered is "
            f"{order.code_digest[:12]}. Build the image from the same commit as the DAG bundle."
        )
    workspace = Workspace.from_environment(store_uri=order.store, tracking=lambda: order.tracking)
    decision = Decision.load(workspace.store, order.decision)
    feature_set = FeatureSet.load(workspace.store, order.features)
    return train(
        declaration,
        workspace,
        feature_set,
        order.features,
        feature_set.snapshot,
        run_key=decision.run_id,
        as_of=decision.as_of,
        cause=decision.cause,
        tune=decision.tune,
        lineage=order.lineage,
    )


def run_container(models: Path, root: Path = ROOT) -> Reference:
    """What the container does: read the order, train, leave the result's reference.

    :raises EvergreenError: why there is no result; written to ``output/failure``, too.
    """
    try:
        order = TrainingOrder.read(_hyperparameters(root))
        trained = run_order(order, models)
        store = Workspace.from_environment(store_uri=order.store).store
        reference = trained.save(store)
        target = root / "model" / RESULT
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{RESULT}.aside")
        aside.write_text(json.dumps(reference.to_dict()))
        aside.replace(target)
    except Exception as error:  # whatever it is: SageMaker shows nobody anything but this file
        failure = root / "output" / "failure"
        failure.parent.mkdir(parents=True, exist_ok=True)
        failure.write_text(reason(error))
        raise
    return reference


def reason(error: Exception) -> str:
    """Why a job failed, in a line that says whether repeating it could help."""
    named = f"{type(error).__name__}: {error}"
    return (REFUSED + named if isinstance(error, RefusalError) else named)[:_LONGEST_REASON]


def read_result(archive: bytes) -> Reference:
    """The reference of the result in what SageMaker packed: ``model.tar.gz``.

    :raises CorruptError: when it holds none.
    """
    try:
        with tarfile.open(fileobj=BytesIO(archive), mode="r:gz") as packed:
            for member in packed:
                if member.name.removeprefix("./") == RESULT and member.isfile():
                    stream = packed.extractfile(member)
                    content = stream.read(LARGEST_ARCHIVE) if stream else b""
                    return Reference.model_validate_json(content)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise CorruptError(
            f"the job's model.tar.gz can't be read: {type(error).__name__}: {error}. "
            "Check compute.train.image and compute.train.entrypoint."
        ) from error
    raise CorruptError(
        f"the job's model.tar.gz holds no {RESULT}: its container wasn't Evergreen's. "
        "Check compute.train.image and compute.train.entrypoint."
    )


def _hyperparameters(root: Path) -> dict[str, str]:
    file = root / "input" / "config" / "hyperparameters.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeclarationError(
            f"{file}: can't be read as the job's order: {error}. SageMaker writes it; to try the "
            "container elsewhere, lay out a folder like /opt/ml and name it by --root."
        ) from error
    if not isinstance(found, dict):
        raise DeclarationError(f"{file}: expected a JSON object, found {type(found).__name__}")
    return found
