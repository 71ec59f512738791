"""DAGs, models and their code from a Git repository: a run keeps the commit that it started on.

The remote is a bare repository on disk. A pool without slots holds the run before its training
while a commit changes the training's code.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from evergreen.airflow_client import AirflowClient
from evergreen.lifecycle import connection
from evergreen.lifecycle.modules import code_digest
from tests.integration.together.shared import Shared, git
from tests.integration.topology import PROJECT
from tests.scenarios.project import Project, month

pytestmark = [pytest.mark.minutes(2), pytest.mark.integration, pytest.mark.timeout(600)]

MODEL = "committed"
FAMILIES = ("ingest", "retrain")
LIMIT = 240.0
HELD = "held"
OLD = """
from sklearn.linear_model import LogisticRegression

def build(**parameters):
    return LogisticRegression(**parameters)
"""
NEW = """
def build(**parameters):
    raise RuntimeError("this is the code of the second commit")
"""


@dataclass(frozen=True)
class Repository:
    """A project as somebody's clone of the bare repository that Airflow reads."""

    project: Project

    @classmethod
    def clone(cls, shared: Shared, folder: Path) -> Repository:
        made = cls(Project(folder, MODEL))
        subprocess.run(["git", "clone", "-q", shared.remote, folder], check=True)
        (folder / "home").symlink_to(shared.folder / "home")
        (folder / ".gitignore").write_text("/home\n__pycache__/\n")
        for family in FAMILIES:
            shutil.copy(PROJECT / "dags" / f"{family}.py", folder / "dags")
        made.project.declare(
            data={"uri": f"landing/{MODEL}/{{partition}}.parquet"},
            training={"estimator": "training:build"},
            compute={"train": {"pool": HELD}},
        )
        return made

    def git(self, *arguments: str) -> str:
        return git(self.project.folder, *arguments)

    def commit(self, training: str) -> str:
        """Change the model's training, and push; the commit."""
        self.project.write("training.py", training)
        self.git("add", "--all")
        self.git("commit", "-q", "-m", "A change of the training")
        self.git("push", "-q", "origin", "main")
        return self.git("rev-parse", "HEAD")


@pytest.fixture(scope="module")
def repository(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository.clone(shared, tmp_path_factory.mktemp("bundles") / "clone")


@pytest.fixture(scope="module")
def airflow(shared: Shared, repository: Repository) -> AirflowClient:
    repository.commit(OLD)
    for family in FAMILIES:
        shared.client.wait_for_dag(f"{MODEL}.{family}", 120)
    return shared.client


def wait(until: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not until():
        assert time.monotonic() < deadline, f"not within {LIMIT:g} s: {what}"
        time.sleep(0.3)  # between looks


def slots(client: AirflowClient, number: int) -> None:
    """How many tasks of the pool may run."""
    body = {"name": HELD, "slots": number, "description": "", "include_deferred": False}
    if number == 0:
        client._send("POST", "/pools", json=body)
    else:
        client._send("PATCH", f"/pools/{HELD}", json=body)


def state(client: AirflowClient, run_id: str, task_id: str) -> str:
    tasks = client.task_instances(f"{MODEL}.retrain", run_id)
    return next(str(task["state"]) for task in tasks if task["task_id"] == task_id)


def test_a_run_ends_on_the_commit_it_started_on(
    airflow: AirflowClient, repository: Repository
) -> None:
    project, old = repository.project, repository.git("rev-parse", "HEAD")
    digest = code_digest(project.declaration)
    slots(airflow, 0)
    project.land(m2024_01=month("2024-01"))
    airflow.trigger(f"{MODEL}.ingest", "land")
    assert airflow.wait_for_run(f"{MODEL}.ingest", "land", LIMIT)["state"] == "success"
    airflow.trigger(f"{MODEL}.retrain", "first", {"reason": "before the commit"})
    wait(lambda: state(airflow, "first", "build_features") == "success", "the features")

    new = repository.commit(NEW)
    found = f"/dags/{MODEL}.retrain"
    wait(lambda: airflow._get(found)["bundle_version"] == new, "the commit is read")
    assert state(airflow, "first", "train") in {"None", "scheduled"}
    slots(airflow, 4)
    first = airflow.wait_for_run(f"{MODEL}.retrain", "first", LIMIT)
    assert first["state"] == "success", airflow.log(f"{MODEL}.retrain", "first", "train")
    assert first["bundle_version"] == old

    with connection.session(project.workspace) as mlflow:
        (version,) = mlflow.search_model_versions(f"name = '{MODEL}'")
        tags = mlflow.get_run(version.run_id).data.tags
    assert tags["evergreen.bundle_version"] == old
    assert tags["evergreen.code_digest"] == digest
    assert version.tags.items() >= {
        "evergreen.bundle_version": old, "evergreen.code_digest": digest,
    }.items()  # fmt: skip

    airflow.trigger(f"{MODEL}.retrain", "second", {"reason": "after the commit"})
    second = airflow.wait_for_run(f"{MODEL}.retrain", "second", LIMIT)
    assert second["bundle_version"] == new
    assert "this is the code of the second commit" in airflow.log(
        f"{MODEL}.retrain", "second", "train"
    )
