"""A real Airflow: tasks forked warm do real work at no import cost, and nothing outlives it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from evergreen import keeper
from evergreen.standalone import Standalone

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

PLUGINS = Path(keeper.__file__).parents[1]

#: Each task imports one vendor, says what that cost, and uses what is risky after a fork.
DAG = """
import time
from datetime import timedelta
from importlib import import_module
from pathlib import Path

from airflow.sdk import DAG, BaseOperator, chain


class Use(BaseOperator):
    def __init__(self, *, module, **kwargs):
        super().__init__(**kwargs)
        self.module = module

    def execute(self, context):
        began = time.perf_counter()
        import_module(self.module)
        print(f"IMPORTED {self.module} in {time.perf_counter() - began:.3f} s")
        getattr(self, self.task_id, lambda: None)()
        print(f"DONE {self.task_id} in {time.perf_counter() - began:.3f} s")

    def duckdb(self):
        import duckdb
        rows = duckdb.sql("SELECT count(DISTINCT a % 1000) FROM range(1000000) t(a)").fetchall()
        assert rows == [(1000,)], rows

    def sklearn(self):
        import numpy as np
        from sklearn.ensemble import HistGradientBoostingClassifier
        x = np.random.default_rng(0).normal(size=(20_000, 5))
        HistGradientBoostingClassifier(max_iter=5).fit(x, x[:, 0] > 0)

    def matplotlib(self):
        import matplotlib.pyplot as plt
        figure, axes = plt.subplots()
        axes.plot([1, 2])
        figure.savefig(Path("plot.png"))

    def feast(self):
        import pandas as pd
        from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
        from feast.types import Float64
        from feast.value_type import ValueType

        now = pd.Timestamp("2013-06-01", tz="UTC")
        pd.DataFrame({
            "origin": ["EWR", "JFK"], "wind": [1.0, 2.0],
            "event_timestamp": now - timedelta(hours=1), "created": now - timedelta(hours=1),
        }).to_parquet("wind.parquet")
        store = FeatureStore(config=RepoConfig(
            project="test", provider="local", registry="registry.db",
            offline_store={"type": "duckdb"}, online_store={"type": "sqlite", "path": "online.db"},
            entity_key_serialization_version=3,
        ))
        origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
        source = FileSource(path="wind.parquet", timestamp_field="event_timestamp",
                            created_timestamp_column="created")
        view = FeatureView(name="weather", entities=[origin], ttl=timedelta(days=1),
                           schema=[Field(name="wind", dtype=Float64)], source=source)
        store.apply([origin, view])
        entities = pd.DataFrame({"origin": ["JFK", "EWR", "LGA"], "event_timestamp": now})
        frame = store.get_historical_features(entities, features=["weather:wind"]).to_df()
        found = frame.set_index("origin")["wind"]
        assert len(frame) == 3 and found["JFK"] == 2.0 and found.isna()["LGA"], frame


class Sleep(BaseOperator):
    def execute(self, context):
        time.sleep(120)


with DAG("vendors", schedule=None):
    chain(
        Use(task_id="mlflow", module="mlflow.sklearn"),
        Use(task_id="great_expectations", module="great_expectations"),
        Use(task_id="feast", module="feast"),
        Use(task_id="sklearn", module="sklearn.ensemble"),
        Use(task_id="duckdb", module="duckdb"),
        Use(task_id="matplotlib", module="matplotlib.pyplot"),
    )

with DAG("sleeper", schedule=None):
    Sleep(task_id="sleep")
"""


@pytest.fixture(scope="module")
def dags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two DAGs: one uses every vendor, one sleeps."""
    folder = tmp_path_factory.mktemp("dags")
    (folder / "vendors.py").write_text(DAG)
    return folder


@pytest.fixture(scope="module")
def airflow(dags: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    """Run Airflow, and fail when something of it is left afterwards."""
    home = tmp_path_factory.mktemp("home")
    with Standalone(home, dags=dags, plugins=PLUGINS) as running:
        yield running
        pids = running.pids()
    assert len(pids) > 4
    assert not [pid for pid in pids if is_alive(pid)]


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie that its new parent has yet to reap does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_tasks_use_every_vendor_without_paying_for_its_import(airflow: Standalone) -> None:
    with airflow.client() as client:
        client.wait_for_dag("vendors", 60)
        client.trigger("vendors", "first")
        run = client.wait_for_run("vendors", "first", 150)
        logs = {
            it["task_id"]: client.log("vendors", "first", it["task_id"])
            for it in client.task_instances("vendors", "first")
        }
    assert run["state"] == "success", logs
    pattern = re.compile(r"IMPORTED \S+ in ([\d.]+) s")
    seconds = {task: float(pattern.findall(log)[0]) for task, log in logs.items()}
    assert len(seconds) == 6
    assert max(seconds.values()) < 0.5, seconds


def test_triggering_twice_runs_once(airflow: Standalone) -> None:
    with airflow.client() as client:
        client.wait_for_dag("vendors", 60)
        first = client.trigger("vendors", "once")
        assert client.trigger("vendors", "once")["dag_run_id"] == first["dag_run_id"]
        assert [it["dag_run_id"] for it in client.dag_runs("vendors")].count("once") == 1


def test_it_listens_on_loopback_only(airflow: Standalone) -> None:
    listening = {
        connection.laddr.ip
        for pid in airflow.pids()
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_nothing_outlives_a_parent_that_is_killed(dags: Path, tmp_path: Path) -> None:
    parent = textwrap.dedent(f"""
        from pathlib import Path
        from evergreen.standalone import Standalone
        import time
        home, dags, plugins = map(Path, {(str(tmp_path), str(dags), str(PLUGINS))!r})
        with Standalone(home, dags=dags, plugins=plugins) as airflow, airflow.client() as client:
            client.wait_for_dag("sleeper", 60)
            client.trigger("sleeper", "one")
            while client.dag_run("sleeper", "one")["state"] != "running":
                time.sleep(0.2)
            print(airflow._keeper.pid, flush=True)
            time.sleep(120)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        session = int(process.stdout.readline())
        assert len(keeper.members(session)) > 4
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + keeper.GRACE + 10
    while keeper.members(session) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert keeper.members(session) == set()
