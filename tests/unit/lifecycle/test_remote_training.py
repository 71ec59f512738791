"""The training container: over a folder laid out like ``/opt/ml``, as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.declaration import DeclarationError
from evergreen.errors import CorruptError, TrainingError, UnavailableError
from evergreen.lifecycle.contracts import Decision, Reference, TrainedModel
from evergreen.lifecycle.modules import code_digest
from evergreen.lifecycle.remote_training import (
    REFUSED,
    TrainingOrder,
    read_result,
    reason,
    run_container,
)
from evergreen.lifecycle.training import train
from evergreen.workspace import Workspace
from tests.builders import workspace_in
from tests.feature_sets import AS_OF, example_rows, store_features
from tests.scenarios.project import Project


@dataclass(frozen=True)
class Container:
    """A container's folder, and an order in it.

    :ivar models: what the image holds.
    """

    root: Path
    models: Path
    workspace: Workspace
    order: TrainingOrder

    def lay_out(self, order: TrainingOrder) -> None:
        file = self.root / "input" / "config" / "hyperparameters.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(order.hyperparameters()))

    @property
    def failure(self) -> str:
        return (self.root / "output" / "failure").read_text()


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Container:
    project = Project(tmp_path)
    project.declare()
    workspace = workspace_in(project.home)
    monkeypatch.setenv("EVERGREEN_HOME", str(project.home))
    _, features = store_features(workspace, example_rows(per_day=40))
    decision = Decision(
        model="example", id=1, run_id="example.retrain/r1", action="retrain", cause="manual",
        reasons=("asked",), as_of=AS_OF, sequence=1,
    ).save(workspace.store)  # fmt: skip
    order = TrainingOrder(
        model="example", decision=decision, features=features,
        code_digest=code_digest(project.declaration), store=workspace.store.root,
        tracking=workspace.tracking_uri, lineage={"dag_run": "r1"},
    )  # fmt: skip
    made = Container(tmp_path / "ml", project.models, workspace, order)
    made.lay_out(order)
    return made


def test_it_leaves_the_reference_of_what_a_task_trains(container: Container) -> None:
    """By the command that an image starts; exit codes as SageMaker reads them."""
    command = [
        sys.executable, "-m", "evergreen.cli", "train-job", "--root", str(container.root),
        "--models", str(container.models),
    ]  # fmt: skip
    done = subprocess.run(
        command, check=False, env=dict(os.environ), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    left = json.loads((container.root / "model" / "evergreen.json").read_text())
    trained = TrainedModel.load(container.workspace.store, left)
    feature_set, again = store_features(container.workspace, example_rows(per_day=40))
    project = Project(container.models.parents[1])
    local = train(
        project.declaration, container.workspace, feature_set, again, feature_set.snapshot,
        run_key="example.retrain/r1", as_of=AS_OF, cause="manual", lineage={},
    )  # fmt: skip
    assert trained == local
    assert run_container(container.models, container.root).to_dict() == left  # run again
    assert not (container.root / "output").exists()
    (container.root / "input/config/hyperparameters.json").write_text("{}")
    done = subprocess.run(
        command, check=False, env=dict(os.environ), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert container.failure.startswith("DeclarationError: the hyperparameters [] are no order")


def test_a_refusal_is_marked(container: Container) -> None:
    _, features = store_features(container.workspace, example_rows(per_day=40).assign(label=1))
    container.lay_out(container.order.model_copy(update={"features": features}))
    with pytest.raises(TrainingError):
        run_container(container.models, container.root)
    assert container.failure.startswith(f"{REFUSED}TrainingError: example: all 160 training rows")
    assert not (container.root / "model" / "evergreen.json").exists()


def test_an_image_of_another_commit_is_refused(container: Container) -> None:
    (container.models / "example" / "more.py").write_text("")
    with pytest.raises(DeclarationError, match="from the same commit"):
        run_container(container.models, container.root)
    assert not container.failure.startswith(REFUSED)


def test_a_reason_fits_where_sagemaker_shows_it() -> None:
    assert len(reason(UnavailableError("x" * 5000))) == 1024


def test_a_job_is_known_by_what_it_trains_not_by_who_asked(container: Container) -> None:
    order = container.order
    job = order.hyperparameters()
    later = order.model_copy(update={"lineage": {"dag_run": "r1", "git_commit": "another"}})
    assert later.is_met_by(job)
    for changed in ({"code_digest": "0" * 64}, {"tracking": "http://elsewhere"}):
        assert not order.model_copy(update=changed).is_met_by(job)
    assert not order.is_met_by({"sagemaker_program": "another's"})


def test_an_order_is_as_long_as_sagemaker_takes(container: Container) -> None:
    long = container.order.model_copy(update={"lineage": {"dag_run": "r" * 3000}})
    with pytest.raises(DeclarationError, match="lineage has 3,0"):
        long.hyperparameters()


REFERENCES = st.builds(Reference, kind=st.text(), uri=st.text(), digest=st.text(max_size=64))


@given(
    st.builds(
        TrainingOrder, model=st.text(), decision=REFERENCES, features=REFERENCES,
        code_digest=st.text(), store=st.text(), tracking=st.text(),
        lineage=st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=4),
    )
)  # fmt: skip
def test_an_order_is_read_as_it_was_written(order: TrainingOrder) -> None:
    written = order.hyperparameters()
    assert all(isinstance(value, str) for value in written.values())
    assert TrainingOrder.read(written) == order


@given(model=st.from_regex(r"[a-z][a-z0-9_]{0,62}", fullmatch=True), run=st.text(max_size=500))
def test_a_jobs_name_is_one_that_sagemaker_takes(model: str, run: str) -> None:
    ref = Reference(kind="x", uri="s3://b/x", digest="0")
    order = TrainingOrder(
        model=model, decision=ref, features=ref, code_digest="c", store="s3://b", tracking="t",
        lineage={},
    )  # fmt: skip
    names = {order.job_name(run, attempt) for attempt in (1, 1, 2, 20)}
    assert len(names) == 3
    for name in names:
        assert len(name) <= 63
        assert all(part.isalnum() for part in name.replace("-", " ").split())
    other = order.model_copy(update={"store": "s3://staging"})
    assert other.job_name(run, 1) not in names


def packed(**files: bytes) -> bytes:
    """A ``model.tar.gz``."""
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return archive.getvalue()


def test_a_result_is_found_in_what_sagemaker_packs() -> None:
    ref = Reference(kind="training", uri="s3://b/x", digest="0" * 64)
    text = ref.model_dump_json().encode()
    assert read_result(packed(**{"weights.bin": b"x", "evergreen.json": text})) == ref
    assert read_result(packed(**{"./evergreen.json": text})) == ref


@pytest.mark.parametrize(
    "archive",
    [b"", b"no archive", packed(), packed(other=b"{}"), packed(**{"evergreen.json": b"{}"}),
     packed(**{"evergreen.json": b"x" * 5000})[:200]],
    ids=["nothing", "no archive", "empty", "another file", "no reference", "cut off"],
)  # fmt: skip
def test_what_is_no_result_is_said(archive: bytes) -> None:
    with pytest.raises(CorruptError, match=r"model\.tar\.gz"):
        read_result(archive)
