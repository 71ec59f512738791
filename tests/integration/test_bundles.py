"""DAGs, models and their code from a Git repository: a run keeps the commit that it started on.

The remote is a bare repository on disk. A pool without slots holds the run before its training
while a commit changes the training's code.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from evergreen import keeper
from evergreen.airflow_client import AirflowClient
from evergreen.lifecycle import connection
from evergreen.lifecycle.modules import code_digest
from evergreen.standalone import Standalone
from tests.scenarios.project import Project, month

pytestmark = [pytest.mark.minutes(2), pytest.mark.integration, pytest.mark.timeout(600)]

PLUGINS = Path(keeper.__file__).parents[1]
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
    """A project as somebody's clone, and the bare repository that Airflow reads."""

    project: Project
    bare: Path

    @classmethod
    def create(cls, folder: Path) -> Repository:
        project = Project.create(
            folder / "clone",
            training={"estimator": "training:build"},
            compute={"train": {"pool": HELD}},
        )
        made = cls(project, folder / "remote.git")
        (project.folder / ".gitignore").write_text("home/\n__pycache__/\n")
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", made.bare], check=True)
        made.git("init", "-q", "-b", "main")
        made.git("remote", "add", "origin", str(made.bare))
        return made

    def git(self, *arguments: str) -> str:
        who = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
        command = ["git", "-C", str(self.project.folder), *who, *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    def commit(self, training: str) -> str:
        """Change the model's training, and push; the commit."""
        self.project.write("training.py", training)
        self.git("add", "--all")
        self.git("commit", "-q", "-m", "A change of the training")
        self.git("push", "-q", "origin", "main")
        return self.git("rev-parse", "HEAD")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository.create(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def airflow(repository: Repository) -> Iterator[AirflowClient]:
    repository.commit(OLD)
    bundle = {
        "name": "evergreen",
        "classpath": "airflow.providers.git.bundles.git.GitDagBundle",
        "kwargs": {
            "repo_url": str(repository.bare),
            "tracking_ref": "main",
            "subdir": "dags",
            "refresh_interval": 1,
        },
    }
    folder = repository.bare.parent
    extra = {
        "EVERGREEN_HOME": str(repository.project.home),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(folder / "bundles"),
    }
    empty = folder / "no-dags-here"
    empty.mkdir()
    with (
        Standalone(folder / "airflow", dags=empty, plugins=PLUGINS, extra=extra) as running,
        running.client() as client,
    ):
        for family in ("ingest", "retrain"):
            client.wait_for_dag(f"example.{family}", 120)
        yield client


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
    tasks = client.task_instances("example.retrain", run_id)
    return next(str(task["state"]) for task in tasks if task["task_id"] == task_id)


def test_a_run_ends_on_the_commit_it_started_on(
    airflow: AirflowClient, repository: Repository
) -> None:
    project, old = repository.project, repository.git("rev-parse", "HEAD")
    digest = code_digest(project.declaration)
    slots(airflow, 0)
    project.land(m2024_01=month("2024-01"))
    airflow.trigger("example.ingest", "land")
    assert airflow.wait_for_run("example.ingest", "land", LIMIT)["state"] == "success"
    airflow.trigger("example.retrain", "first", {"reason": "before the commit"})
    wait(lambda: state(airflow, "first", "build_features") == "success", "the features")

    new = repository.commit(NEW)
    found = "/dags/example.retrain"
    wait(lambda: airflow._get(found)["bundle_version"] == new, "the commit is read")
    assert state(airflow, "first", "train") in {"None", "scheduled"}
    slots(airflow, 4)
    first = airflow.wait_for_run("example.retrain", "first", LIMIT)
    assert first["state"] == "success", airflow.log("example.retrain", "first", "train")
    assert first["bundle_version"] == old

    with connection.session(project.workspace) as mlflow:
        (version,) = mlflow.search_model_versions("name = 'example'")
        tags = mlflow.get_run(version.run_id).data.tags
    assert tags["evergreen.bundle_version"] == old
    assert tags["evergreen.code_digest"] == digest
    assert version.tags.items() >= {
        "evergreen.bundle_version": old, "evergreen.code_digest": digest,
    }.items()  # fmt: skip

    airflow.trigger("example.retrain", "second", {"reason": "after the commit"})
    second = airflow.wait_for_run("example.retrain", "second", LIMIT)
    assert second["bundle_version"] == new
    assert "this is the code of the second commit" in airflow.log(
        "example.retrain", "second", "train"
    )
