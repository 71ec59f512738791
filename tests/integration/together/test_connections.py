"""A real Airflow shows our Connections' forms, its "Test" asks real services, and a task's log,
XCom and the API keep their secrets."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from evergreen.airflow_client import TokenAuth
from evergreen.provider_info import get_provider_info
from evergreen.standalone import HOST, USER, free_port
from tests.integration.processes import Process, wait_until
from tests.integration.services import PostgresService, postgres
from tests.integration.together.shared import Shared
from tests.replicas import guarded

pytestmark = [pytest.mark.integration, pytest.mark.minutes(2)]

BUCKET = "connections"
KEY = "pl@nted/replicas' key"
WRONG = "pl@nted/wr0ng#%"  # in every Connection that fails
PLANTED = ("pl@nted", quote("pl@nted"))
DAG = """
from airflow.sdk import DAG, BaseOperator

from evergreen.hooks.ledger import LedgerHook
from evergreen.hooks.serving import ServingHook
from evergreen.hooks.store import StoreHook
from evergreen.hooks.tracking import MlflowHook
from evergreen.hooks.workspace import WorkspaceHook


class Use(BaseOperator):
    def execute(self, context):
        for kind in (LedgerHook, StoreHook, MlflowHook, ServingHook):
            hook = kind(conn_id=f"bad_{kind.__module__.rpartition('.')[2]}")
            self.log.info("it says %s", hook.test_connection())
            try:
                hook.ask()
            except Exception as error:
                self.log.exception("it raises")
                context["ti"].xcom_push(key=kind.__name__, value=repr(error))
        workspace = WorkspaceHook(
            ledger_conn_id="bad_ledger", mlflow_conn_id="bad_tracking",
            serving_conn_id="bad_serving", store_conn_id="bad_store",
        ).get_conn()
        self.log.info("the workspace is %r", workspace)
        self.log.info("a careless line: %s", LedgerHook(conn_id="bad_ledger").url())
        return {"ledger": repr(workspace.ledger), "store": repr(workspace.store)}


with DAG("use", schedule=None):
    Use(task_id="use")
"""


@dataclass
class Deployment:
    """An Airflow, and what its Connections lead to."""

    shared: Shared
    http: httpx.Client
    database: str
    mlflow: str
    replica: str

    def connection(self, kind: str, *, good: bool) -> dict[str, Any]:
        """The body of a Connection that works, or doesn't."""
        place = urlsplit(self.database)
        right = {
            "evergreen_ledger": {
                "host": place.hostname,
                "port": place.port,
                "schema": place.path.strip("/"),
                "login": place.username,
                "password": place.password if good else WRONG,
                "extra": json.dumps({"sslmode": "disable"}),
            },
            "evergreen_store": {
                "host": f"s3://{BUCKET if good else 'nowhere'}/evergreen",
                "extra": json.dumps({"aws_conn_id": "stores_aws" if good else "bad_aws"}),
            },
            "evergreen_mlflow": {
                "host": self.mlflow if good else f"http://{HOST}:{free_port()}",
                "login": "me",
                "password": KEY if good else WRONG,
            },
            "evergreen_serving": {"host": self.replica, "password": KEY if good else WRONG},
        }[kind]
        return {"connection_id": f"try_{kind}", "conn_type": kind, **right}

    def aws(self, conn_id: str, *, secret: str) -> dict[str, Any]:
        bucket = self.shared.aws
        extra = {"endpoint_url": bucket.endpoint, "region_name": "eu-central-1"}
        return {
            "connection_id": conn_id,
            "conn_type": "aws",
            "login": bucket.keys["AWS_ACCESS_KEY_ID"],
            "password": secret,
            "extra": json.dumps(extra),
        }

    def test(self, body: dict[str, Any]) -> tuple[bool, str]:
        """Press "Test"."""
        answer = self.http.post("connections/test", json=body).raise_for_status().json()
        return answer["status"], answer["message"]


@contextmanager
def mlflow(folder: Path) -> Iterator[tuple[str, Process]]:
    """MLflow's own server, starting."""
    port = free_port()
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(folder)}
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment |= {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = Process(
        "mlflow",
        [
            sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port),
            "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1",
        ],
        environment=environment,
        folder=folder,
        log=folder / "mlflow.log",
    )  # fmt: skip

    process.start()
    try:
        yield f"http://{HOST}:{port}", process
    finally:
        process.stop()


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def deployment(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    (shared.folder / "dags" / "use.py").write_text(textwrap.dedent(DAG))
    bucket, airflow = shared.aws, shared.standalone
    bucket.create(BUCKET)
    with ExitStack() as stack:
        database: PostgresService = stack.enter_context(postgres())
        replica = stack.enter_context(guarded(KEY))
        tracked, starting = stack.enter_context(mlflow(tmp_path_factory.mktemp("mlflow")))
        wait_until(lambda: answers(tracked), what="MLflow answers", timeout=90, of=[starting])
        auth = TokenAuth(airflow.url, USER, airflow.password)
        http = stack.enter_context(
            httpx.Client(base_url=f"{airflow.url}/api/v2", auth=auth, trust_env=False, timeout=60)
        )
        found = Deployment(shared, http, database.create("ledger"), tracked, replica)
        secret = bucket.keys["AWS_SECRET_ACCESS_KEY"]
        for body in (found.aws("stores_aws", secret=secret), found.aws("bad_aws", secret=WRONG)):
            http.post("connections", json=body).raise_for_status()
        # The first look at a store imports Airflow's Amazon provider and s3fs, and a look is bounded.
        store = found.connection("evergreen_store", good=True)
        wait_until(lambda: found.test(store)[0], what="a store's libraries are there", timeout=120)
        yield found


@pytest.mark.parametrize(
    "kind", [it["connection-type"] for it in get_provider_info()["connection-types"]]
)
def test_the_form_is_shown(kind: str, deployment: Deployment) -> None:
    ui = f"{deployment.shared.standalone.url}/ui/connections/hook_meta"
    shown = deployment.http.get(ui).raise_for_status().json()
    (meta,) = [it for it in shown if it["connection_type"] == kind]
    (declared,) = [
        it for it in get_provider_info()["connection-types"] if it["connection-type"] == kind
    ]
    assert meta["hook_name"] == declared["hook-name"]
    assert set(meta["extra_fields"] or {}) == set(declared.get("conn-fields", {}))
    hidden = {
        name.replace("url_schema", "schema")
        for name, about in meta["standard_fields"].items()
        if about and about["hidden"]
    }
    assert hidden == set(declared["ui-field-behaviour"]["hidden-fields"])


@pytest.mark.parametrize(
    ("kind", "works", "fails"),
    [
        ("evergreen_ledger", "no tables yet", "password authentication failed"),
        ("evergreen_store", f"Wrote, read and deleted s3://{BUCKET}/evergreen/probe-", "nowhere"),
        ("evergreen_mlflow", "is well and lets us read", "ConnectError"),
        ("evergreen_serving", "takes the key and serves example version 7", "refuses this key"),
    ],
)
def test_test_asks(kind: str, works: str, fails: str, deployment: Deployment) -> None:
    passed, message = deployment.test(deployment.connection(kind, good=True))
    assert passed, message
    assert works in message
    began = time.monotonic()
    passed, told = deployment.test(deployment.connection(kind, good=False))
    assert not passed
    assert fails in told
    assert time.monotonic() - began < 20
    for secret in (*PLANTED, str(urlsplit(deployment.database).password)):
        assert secret not in message + told


def test_nothing_is_left_by_testing(deployment: Deployment) -> None:
    listed = deployment.shared.aws.client().list_objects_v2(Bucket=BUCKET)
    assert listed["KeyCount"] == 0


def test_a_stored_connection_is_tested_with_its_own_secret(deployment: Deployment) -> None:
    """The form sends asterisks for a secret that it was never shown; no other host gets it."""
    body = deployment.connection("evergreen_serving", good=True)
    deployment.http.post("connections", json=body).raise_for_status()
    shown = deployment.http.get(f"connections/{body['connection_id']}").raise_for_status().json()
    assert shown["password"] == "***"
    passed, told = deployment.test(body | {"password": "***"})
    assert passed, told
    elsewhere = {"host": f"http://{HOST}:{free_port()}", "password": "***"}
    assert deployment.http.post("connections/test", json=body | elsewhere).status_code == 400


def test_a_task_shows_no_secret(deployment: Deployment) -> None:
    kinds = {"ledger": "ledger", "store": "store", "tracking": "mlflow", "serving": "serving"}
    for module, kind in kinds.items():
        body = deployment.connection(f"evergreen_{kind}", good=False)
        body["connection_id"] = f"bad_{module}"
        deployment.http.post("connections", json=body).raise_for_status()
    client = deployment.shared.client
    client.wait_for_dag("use", 60)
    client.trigger("use", "one")
    run = client.wait_for_run("use", "one", 120)
    log = client.log("use", "one", "use")
    assert run["state"] == "success", log
    values = {}
    entries = "dags/use/dagRuns/one/taskInstances/use/xcomEntries"
    for entry in deployment.http.get(entries).raise_for_status().json()["xcom_entries"]:
        found = deployment.http.get(f"{entries}/{entry['key']}").raise_for_status().json()
        values[entry["key"]] = found["value"]
    assert {"LedgerHook", "StoreHook", "MlflowHook", "ServingHook", "return_value"} <= set(values)
    assert "a careless line" in log
    written = list(deployment.shared.standalone.home.rglob("*.log"))
    assert len(written) > 1
    for text in (log, json.dumps(values), *map(_without_careless_lines, written)):
        for secret in PLANTED:
            assert secret not in text


def _without_careless_lines(path: Path) -> str:
    """Airflow masks a task's log, but not the copy of it that goes to the scheduler's output."""
    lines = path.read_text(errors="replace").splitlines()
    masked = path.name != "airflow.log"
    return "\n".join(line for line in lines if masked or "a careless line" not in line)
