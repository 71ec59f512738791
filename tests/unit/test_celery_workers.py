"""Celery's workers: warm before they fork, by Airflow's own configuration."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ENVIRONMENT = {
    "AIRFLOW__CELERY__CELERY_CONFIG_OPTIONS": "evergreen.celery_workers.CONFIG",
    "AIRFLOW__CELERY__BROKER_URL": "memory://",
    "AIRFLOW__CELERY__RESULT_BACKEND": "cache+memory://",
    "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite://",
}

#: What a worker does between its start and its first fork, without a broker.
SCRIPT = """
    import asyncio, gc, sys, threading
    from evergreen import executors
    from evergreen.store import s3_session

    warmed = []
    executors.preload = lambda modules: warmed.extend(modules) or {}
    from airflow.providers.celery.executors import celery_executor_utils as theirs
    from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG
    from celery.signals import worker_init

    assert theirs.get_celery_configuration() is DEFAULT_CELERY_CONFIG
    assert "evergreen.celery_workers" in sys.modules
    assert not warmed, "a scheduler must not pay for it"
    frozen = gc.get_freeze_count()
    worker_init.send(sender=None)
    assert {"mlflow", "feast", "s3fs", "psycopg2", "evergreen.lifecycle.training"} <= set(warmed)
    assert gc.get_freeze_count() > frozen
    assert threading.active_count() == 1, "what is forked beside a thread may hang"

    async def open_s3():
        nobody = {"aws_access_key_id": "-", "aws_secret_access_key": "-"}
        async with s3_session().create_client("s3", region_name="eu-west-1", **nobody):
            pass

    s3_session().get_component("data_loader").file_loader = None  # what isn't read yet, can't be
    asyncio.run(open_s3())
    print("warm")
"""


def test_a_worker_is_warm_before_it_forks_and_a_scheduler_is_not(tmp_path: Path) -> None:
    """In a process of its own: Airflow reads its settings once."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        env={**os.environ, **ENVIRONMENT, "AIRFLOW_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if "cannot import name" in done.stderr and "celery.backends" in done.stderr:
        pytest.fail(f"Airflow's provider doesn't go with this Celery:\n{done.stderr[-1000:]}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "warm"
