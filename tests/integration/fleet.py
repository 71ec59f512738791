"""A project whose model is served: its versions, its replicas, a proxy before them; all real.

``temp`` and ``sky`` come from the online store by ``origin``, ``distance`` comes with the request.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import yaml

from evergreen.declaration import Declaration, read_declaration
from evergreen.foreground import Foreground
from evergreen.ledger import records
from evergreen.lifecycle.arbitration import arbitrate, conclude, preview
from evergreen.lifecycle.contracts import Promotion, Result, Rollback
from evergreen.lifecycle.gating import gate
from evergreen.lifecycle.ingestion import ingest
from evergreen.lifecycle.rollback import roll_back
from evergreen.operators.promotion import PromoteModelOperator
from evergreen.workspace import Workspace
from tests.feature_models import MODULE
from tests.homes import furnish

DAGS = Path(__file__).parents[2] / "dags"
PLUGINS = DAGS.with_name("plugins")
LATER = datetime(2030, 1, 1, tzinfo=UTC)
ORIGINS = ("JFK", "EWR", "LGA", "BOS")
MODEL: dict[str, Any] = {
    "task": "binary_classification",
    "owner": {"team": "ops", "contact": "ops@example.com"},
    "data": {
        "uri": "landing/flights/{partition}.parquet",
        "partition": "day",
        "entities": ["origin"],
        "label": {"column": "late", "timestamp": "label_timestamp"},
        "sources": {"weather": {"uri": "landing/weather/{partition}.parquet"}},
    },
    "features": {"module": "features", "service": "example"},
    "training": {
        "estimator": "sklearn.ensemble.HistGradientBoostingClassifier",
        "parameters": {"max_iter": 100, "early_stopping": False},
        "holdout": {"length": "12h", "min_rows": 50},
        "window": {"min_rows": 50},
    },
    "evaluation": {"primary": "log_loss"},
    "gate": {
        "resamples": 400,
        "latency_p95_ms": 5000,
        "memory_mb": 8000,
        "promote_when": "non_inferior",
        "margin": 5.0,
    },
    "serving": {"online": {"max_age": "5000d"}},
}
#: Requests by entity keys, and the same with all features; two rows each, or one.
KEYS = [
    {"rows": [{"origin": a, "distance": 4.0 * k}, {"origin": b, "distance": 4.0 * k + 1}]}
    for k, (a, b) in enumerate(zip(ORIGINS, reversed(ORIGINS), strict=True))
]
COLUMNS = ["origin", "temp", "sky", "distance"]
WHOLE = [
    {"dataframe_split": {"columns": COLUMNS, "data": [["JFK", 100.0 + k, "clear", 5.0 * k]]}}
    for k in range(8)
]


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        return int(there.getsockname()[1])


@dataclass(frozen=True)
class Served:
    """A model of a project below ``folder``."""

    folder: Path
    name: str = "example"

    @classmethod
    def create(cls, folder: Path, **sections: Any) -> Served:
        """A new project with one model, declared as `declare` does."""
        shutil.copytree(DAGS, folder / "dags", ignore=shutil.ignore_patterns("__pycache__"))
        furnish(folder / "home")
        served = cls(folder)
        served.declare(**sections)
        return served

    def declare(self, **sections: Any) -> None:
        """Declare it in a project that is there; ``sections`` are merged over `MODEL`, one level deep."""
        content = {"name": self.name, **MODEL}
        for name, section in sections.items():
            known = content.get(name, {})
            content[name] = {**known, **section} if isinstance(section, dict) else section
        model = self.models / self.name
        model.mkdir(parents=True)
        (model / "model.yaml").write_text(yaml.safe_dump(content))
        (model / "features.py").write_text(MODULE)

    def redeclare(self, **sections: Any) -> None:
        """Declare otherwise, one level deep: replicas, once their ports are known."""
        file = self.models / self.name / "model.yaml"
        content = yaml.safe_load(file.read_text())
        for name, section in sections.items():
            content[name] = {**content[name], **section}
        file.write_text(yaml.safe_dump(content))

    @property
    def models(self) -> Path:
        """The folder of model folders."""
        return self.folder / "include" / "models"

    @property
    def home(self) -> Path:
        """What is ``EVERGREEN_HOME``."""
        return self.folder / "home"

    @property
    def declaration(self) -> Declaration:
        return read_declaration(self.models / self.name)

    @property
    def workspace(self) -> Workspace:
        return Workspace.from_environment({"EVERGREEN_HOME": str(self.home)})

    def land(self, day: int, *, rows: int = 480) -> None:
        """Land and register a day of January 2026."""
        self.put(day, rows=rows)
        ingest(self.declaration, self.workspace, LATER)

    def put(self, day: int, *, rows: int = 480) -> None:
        """Land a day, whose label follows ``distance``."""
        random = np.random.default_rng(day)
        start = pd.Timestamp(f"2026-01-{day:02}", tz="UTC")
        times = pd.DatetimeIndex(start + pd.Timedelta(days=1) / rows * np.arange(rows)).as_unit(
            "us"
        )
        distance = random.uniform(0, 48, rows)
        late = random.random(rows) < 1 / (1 + np.exp(-(distance - 24) / 4))
        flights = pd.DataFrame(
            {
                "event_timestamp": times,
                "origin": random.choice(np.array(ORIGINS), rows),
                "distance": distance,
                "late": late.astype(float),
                "label_timestamp": times + pd.Timedelta(hours=1),
            }
        )
        hours = pd.DatetimeIndex(start + pd.Timedelta(hours=1) * np.arange(24)).as_unit("us")
        weather = pd.DataFrame(
            {
                "origin": np.repeat(ORIGINS, 24),
                "event_timestamp": list(hours) * len(ORIGINS),
                "temp": random.normal(100, 10, 24 * len(ORIGINS)),
                "sky": random.choice(np.array(["clear", "cloudy"]), 24 * len(ORIGINS)),
            }
        )
        for name, frame in (("flights", flights), ("weather", weather)):
            target = self.home / "landing" / name / f"2026-01-{day:02}.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            frame.to_parquet(target, index=False)

    def prepare(self, run_id: str) -> None:
        """Train ahead what `promote` will find trained; its verdict waits for the champion."""
        declaration, workspace = self.declaration, self.workspace
        with workspace.ledger.read() as session:
            as_of = records.watermark(session, self.name)
        assert as_of is not None
        decision = preview(declaration, workspace, run_id=run_id, as_of=as_of)
        run = Foreground(declaration, workspace, decision.as_of, decision)
        assert run.infrastructure.loads

    def verify(self) -> None:
        """Take the live version to have proved itself."""
        with self.workspace.ledger.write() as session:
            live = records.champion(session, self.name)
            assert live is not None
            records.add_event(session, live, "verified", {"reason": "for the test"})

    def events(self) -> dict[str, dict[str, Any]]:
        """What is known of the live promotion: event → detail."""
        with self.workspace.ledger.read() as session:
            live = records.champion(session, self.name)
            assert live is not None
            return records.events_of(session, live.id)

    def judge(self, run_id: str) -> dict[str, Any]:
        """Train and judge, as a person asks for it; what the promotion is given: references."""
        declaration, workspace = self.declaration, self.workspace
        wish = {"user": "me", "reason": "a new version"}
        decision = arbitrate(declaration, workspace, run_id=run_id, manual=wish)
        run = Foreground(declaration, workspace, decision.as_of, decision)
        verdict = gate(
            declaration,
            workspace,
            decision,
            run.trained,
            run.validation,
            run.evaluation,
            run.infrastructure,
        )
        results: dict[str, Result] = {
            "decision": decision,
            "verdict": verdict,
            "trained": run.trained,
            "snapshot": run.snapshot,
            "features": run.features,
            "evaluation": run.evaluation,
        }
        return {name: it.save(workspace.store).to_dict() for name, it in results.items()}

    def promote(self, run_id: str) -> Promotion:
        """Train, judge and promote, as a person asks for it; the promotion by its own task."""
        operator = PromoteModelOperator(
            task_id="promote", model=self.declaration, **self.judge(run_id)
        )
        made = operator.run_stage(self.workspace, None)  # type: ignore[arg-type]  # not looked at
        conclude(self.declaration, self.workspace, run_id)
        return made

    def roll_back(
        self, run_id: str, version: str | None = None, *, force: bool = False
    ) -> Rollback:
        """Return to a version, as a person asks for it."""
        return roll_back(
            self.declaration,
            self.workspace,
            run_id=run_id,
            reason="a test asks for it",
            person="me",
            version=version,
            force=force,
        )


@dataclass
class Replica:
    """An ``evergreen serve`` process."""

    served: Served
    port: int
    name: str
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.served.folder / f"{self.name}.log"

    def start(self, timeout: float = 90.0) -> Replica:
        """Start it, and wait until it says that it serves."""
        command = [
            sys.executable, "-m", "evergreen.cli", "serve", self.served.name, "--models",
            str(self.served.models), "--port", str(self.port), "--replica", self.name,
            "--every", "0.2",
        ]  # fmt: skip
        environment = {
            **os.environ,
            "EVERGREEN_HOME": str(self.served.home),
            "PYTHONPATH": os.pathsep.join([str(PLUGINS), str(Path(__file__).parents[2])]),
            **self.environment,
        }
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=stream
            )
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            if select.select([self.process.stdout], [], [], 0.5)[0]:
                line = self.process.stdout.readline().decode()
                if line.startswith("evergreen serves"):
                    return self
        raise AssertionError(f"{self.name} doesn't serve: {self.log.read_text()[-3000:]}")

    def version(self) -> dict[str, Any]:
        """What it reports of the model."""
        found: dict[str, Any] = httpx.get(f"{self.address}/version", timeout=10).json()
        state: dict[str, Any] = found["models"][self.served.name]
        return state

    def ask(self, body: Any, path: str = "/predict", **headers: str) -> httpx.Response:
        """One request."""
        return httpx.post(f"{self.address}{path}", json=body, headers=headers, timeout=30)

    def wait_for(self, version: str, timeout: float = 30.0) -> None:
        """Wait until it reports a version."""
        deadline = time.monotonic() + timeout
        while self.version()["version"] != version:
            assert time.monotonic() < deadline, self.version()
            time.sleep(0.05)  # between looks, until the deadline

    def kill(self) -> tuple[float, float]:
        """SIGKILL; Unix times between which it died."""
        assert self.process is not None
        asked = time.time()
        self.process.kill()
        self.process.wait(10)
        return asked, time.time()

    def stop(self, timeout: float = 30.0) -> None:
        """SIGTERM: it answers what is in flight, ships its log, and ends."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise AssertionError(
                f"{self.name} didn't end: {self.log.read_text()[-3000:]}"
            ) from None


@contextmanager
def declared_replica(served: Served) -> Iterator[Replica]:
    """A replica that serves a model, and that its declaration names."""
    replica = Replica(served, free_port(), "one").start()
    served.redeclare(serving={"replicas": [replica.address]})
    try:
        yield replica
    finally:
        replica.stop()


@dataclass
class Proxy:
    """HAProxy before replicas: it looks at /ping, and sends a request elsewhere only when no
    connection came about; what was in flight at a replica that dies is lost. Its log says at which
    replica, but not of a request on a kept connection: that one HAProxy just closes. A replica
    that is slow to answer /ping is busy, not gone.

    :ivar kept: whether connections are kept for further requests, as clients usually do.
    """

    folder: Path
    replicas: Sequence[Replica]
    kept: bool = True
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def servers(self) -> dict[str, str]:
        """Request id → the replica that the proxy had sent it to when it was over."""
        lines = (line.split() for line in (self.folder / "haproxy.log").read_text().splitlines())
        return {line[1].strip("{}"): line[2] for line in lines if line[:1] == ["answered"]}

    def start(self) -> Proxy:
        """Start it, and wait until it answers."""
        self.port = free_port()
        servers = "\n".join(
            f"  server {r.name} 127.0.0.1:{r.port} check inter 100ms fall 1 rise 1"
            for r in self.replicas
        )
        settings = self.folder / "haproxy.cfg"
        settings.write_text(
            # Two threads that log at once lose a line: one waits for nobody.
            "global\n  nbthread 1\n  log stdout format raw local0\n"
            "defaults\n  mode http\n  log global\n  timeout connect 2s\n  timeout client 30s\n"
            "  timeout server 30s\n  timeout check 10s\n  retries 3\n  option redispatch 1\n"
            f"  retry-on conn-failure\n  option {'http-keep-alive' if self.kept else 'httpclose'}\n"
            f"frontend front\n  bind 127.0.0.1:{self.port}\n  default_backend replicas\n"
            "  capture request header X-Request-Id len 128\n"
            "  log-format 'answered %hr %s %ST %ts'\n"
            f"backend replicas\n  balance roundrobin\n  option httpchk GET /ping\n{servers}\n"
        )
        with (self.folder / "haproxy.log").open("wb") as log:
            self.process = subprocess.Popen(["haproxy", "-db", "-f", str(settings)], stdout=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.address}/ping", timeout=2).status_code == 200:
                    return self
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.05)  # between looks, until the deadline
        raise AssertionError("haproxy doesn't answer")

    def stop(self) -> None:
        """End it."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)
