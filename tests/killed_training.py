"""A process that trains, and ends itself by SIGKILL at a named moment. Run by `test_training`."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from evergreen.declaration import Declaration
from evergreen.lifecycle import tracking
from evergreen.lifecycle.contracts import FeatureSet, Reference
from evergreen.lifecycle.training import RESULT, train
from tests.builders import workspace_in
from tests.feature_sets import AS_OF


def _die_at(moment: str) -> None:
    """Let the second trial, the model's upload, or the writing of the result be the last act."""
    import mlflow

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "save_model":
        mlflow.MlflowClient.log_model_artifacts = die
    elif moment == "log_trial":
        finish = tracking.finish_run
        seen: list[str] = []

        def finish_one(*arguments: Any, **options: Any) -> None:
            finish(*arguments, **options) if not seen else die()
            seen.append("finished")

        tracking.finish_run = finish_one
    else:
        set_tags = tracking.set_tags

        def set_others(workspace: Any, run_id: str, tags: dict[str, str]) -> None:
            die() if RESULT in tags else set_tags(workspace, run_id, tags)

        tracking.set_tags = set_others


if __name__ == "__main__":
    moment, home, declared, features, reference = sys.argv[1:]
    declaration = Declaration.model_validate_json(declared)
    declaration._folder = Path(home) / "model"
    feature_set = FeatureSet.model_validate_json(features)
    _die_at(moment)
    train(
        declaration,
        workspace_in(Path(home)),
        feature_set,
        Reference.model_validate_json(reference),
        feature_set.snapshot,
        run_key="train/1",
        as_of=AS_OF,
        cause="drift",
        lineage={"git_commit": "abc", "dag_run": "r1"},
    )
