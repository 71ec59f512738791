"""SageMaker, played: moto answers the API, and jobs really run, as processes over a folder.

moto itself calls a job completed the moment it is ordered, and runs nothing. Here a job is
``InProgress`` until the command that its order names has run over a folder laid out as ``/opt/ml``,
on the hyperparameters of the order; its exit code, its failure file and its packed model folder
become what SageMaker would say. A name can be used once, as there. ``UpdateEndpoint``, which moto
doesn't know, is played too.

Files in the folder of the player are its switches: while ``hold`` is there jobs wait, each line of
``break`` lets one job fail as a broken machine does, and while ``rejected`` is there an endpoint
goes back from each update to what it ran before; the file gets a line for each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

from evergreen.standalone import HOST, free_port
from tests.integration.processes import Process
from tests.integration.services import S3Service

_LONGEST_HOLD = 300.0


@contextmanager
def played_sagemaker(folder: Path, models: Path) -> Iterator[S3Service]:
    """AWS with a SageMaker whose containers hold ``models``.

    :param folder: of the player; ``jobs/<name>`` below it is what a container calls ``/opt/ml``.
    """
    folder.mkdir()
    port = free_port()
    process = Process(
        "sagemaker",
        [sys.executable, "-m", "tests.integration.played_sagemaker", str(port), str(folder)],
        environment={"PATH": os.environ["PATH"], "HOME": str(folder), "EVERGREEN_MODELS": str(models)},
        folder=Path(__file__).parents[2],
        log=folder / "log",
    )  # fmt: skip
    service = S3Service(f"http://{HOST}:{port}", process)
    process.environment |= service.environment
    try:
        service.start()
        yield service
    finally:
        service.stop()


def main(port: str, folder: Path) -> None:
    """Serve until ended."""
    from moto.core.exceptions import JsonRESTError
    from moto.core.responses import ActionResult
    from moto.core.utils import utcnow
    from moto.sagemaker.models import SageMakerModelBackend
    from moto.sagemaker.responses import SageMakerResponse
    from moto.server import main as serve

    order = SageMakerModelBackend.create_training_job

    def create(self: SageMakerModelBackend, training_job_name: str, **given: Any) -> Any:
        if training_job_name in self.training_jobs:
            raise JsonRESTError("ResourceInUse", "Training job names must be unique")
        job: Any = order(self, training_job_name=training_job_name, **given)
        job.training_job_status = job.secondary_status = "InProgress"
        Thread(target=_run, args=(job, folder), daemon=True).start()
        return job

    def update_endpoint(self: SageMakerResponse) -> ActionResult:
        name, config = self._get_param("EndpointName"), self._get_param("EndpointConfigName")
        self.sagemaker_backend.describe_endpoint_config(config)
        endpoint = self.sagemaker_backend.endpoints[name]
        rejected = Path(folder) / "rejected"
        if rejected.exists():
            with rejected.open("a") as lines:
                lines.write(f"{config}\n")
        else:
            endpoint.endpoint_config_name, endpoint.last_modified_time = config, utcnow()
        return ActionResult({"EndpointArn": endpoint.arn})

    SageMakerResponse.update_endpoint = update_endpoint  # type: ignore[attr-defined]  # moto has none
    SageMakerModelBackend.create_training_job = create  # type: ignore[method-assign,assignment]  # that is the play
    serve(["-H", HOST, "-p", port])


def _run(job: Any, folder: Path) -> None:
    """A job from its order to its end."""
    deadline = time.monotonic() + _LONGEST_HOLD
    while (folder / "hold").exists() and time.monotonic() < deadline:
        time.sleep(0.05)  # between looks at the switch
    broken = folder / "break"
    if broken.exists() and (lines := broken.read_text().splitlines()):
        broken.write_text("\n".join(lines[1:]))
        _end(job, f"InternalServerError: {lines[0]}")
        return
    root = folder / "jobs" / job.training_job_name
    (root / "input" / "config").mkdir(parents=True)
    (root / "model").mkdir()
    (root / "input" / "config" / "hyperparameters.json").write_text(
        json.dumps(job.hyper_parameters)
    )
    done = subprocess.run(
        [*job.algorithm_specification["ContainerEntrypoint"], "--root", str(root)],
        env={**os.environ, "EVERGREEN_HOME": str(root / "home")},
        timeout=_LONGEST_HOLD, check=False,
    )  # fmt: skip
    failure = root / "output" / "failure"
    if done.returncode:
        why = failure.read_text() if failure.exists() else ""
        _end(job, f"AlgorithmError: {why}, exit code: {done.returncode}")
        return
    _upload(job, root / "model")
    _end(job, None)


def _upload(job: Any, folder: Path) -> None:
    import boto3

    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    bucket, _, key = job.model_artifacts["S3ModelArtifacts"].removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=packed.getvalue())


def _end(job: Any, failure: str | None) -> None:
    if failure:
        job.failure_reason = failure
    job.training_job_status = job.secondary_status = "Failed" if failure else "Completed"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
