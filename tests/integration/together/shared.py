"""One Airflow for the files that need a real one but none of their own: a start costs half a minute.

Each file has models of its own names in it. It tells what it does: mails to a server of this
process, OpenLineage's events to a file, StatsD's gauges over UDP.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller

from evergreen import keeper
from evergreen.airflow_client import AirflowClient
from evergreen.standalone import Standalone, free_port
from tests.homes import furnish
from tests.integration import services
from tests.integration.topology import PROJECT
from tests.scenarios.project import Project

PLUGINS = Path(keeper.__file__).parents[1]
NEVER = "0 0 1 1 *"  # a sweep beside what a test does would be one run more
GAUGE = re.compile(r"^airflow\.(evergreen\.\w+\.\w+)((?:,\w+=[\w.]+)*):([\d.e+-]+)\|g$")


class Receiver:
    """StatsD's end: a UDP socket of loopback, and every gauge that came."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def _receive(self) -> None:
        while (line := self._socket.recv(65536)) != b"stop":
            self.lines += line.decode().splitlines()

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"stop", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def gauges(self) -> dict[tuple[str, str], list[float]]:
        """Name and tags → values, in order."""
        found: dict[tuple[str, str], list[float]] = {}
        for match in filter(None, map(GAUGE.match, list(self.lines))):
            found.setdefault((match[1], match[2].lstrip(",")), []).append(float(match[3]))
        return found


@dataclass(frozen=True)
class Shared:
    """What runs.

    :ivar folder: the project's.
    :ivar remote: a bare Git repository, whose branch ``main`` is a bundle of DAGs too; empty.
    :ivar client: logged in as ``admin``; there is also ``vera``, an operator.
    :ivar mails: what was sent through the Connection ``mail``.
    :ivar events: OpenLineage's file, an event a line.
    :ivar aws: what AWS's services are for it, by moto.
    """

    folder: Path
    remote: Path
    standalone: Standalone
    client: AirflowClient
    aws: services.S3Service
    events: Path
    receiver: Receiver = field(repr=False)
    mails: list[Any] = field(repr=False)

    def model(self, name: str, *families: str, **sections: Any) -> Project:
        """A model of this Airflow, once its DAGs of these families are there."""
        project = Project(self.folder, name)
        ours = {"uri": f"landing/{name}/{{partition}}.parquet", "sweep": NEVER}
        project.declare(**{**sections, "data": {**sections.get("data", {}), **ours}})
        self.wait_for(name, *families)
        return project

    def wait_for(self, name: str, *families: str) -> None:
        """Wait for DAGs of a model that has just been declared."""
        for family in families:  # a file that has changed is read again at once
            (self.folder / "dags" / f"{family}.py").touch()
        for family in families:
            self.client.wait_for_dag(f"{name}.{family}", 120)

    def lineage(self, last: str, times: int = 1) -> list[dict[str, Any]]:
        """All events, once the task ``last`` has told so often that it ended: Airflow knows before."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            lines = (
                self.events.read_text().splitlines(keepends=True) if self.events.exists() else []
            )
            events = [json.loads(line) for line in lines if line.endswith("\n")]
            if len(ended(events, last)) >= times:
                return events
            time.sleep(0.2)  # between looks at a file
        raise AssertionError(f"{last} has not told that it ended {times} times: {lines[-3:]}")


def ended(events: list[dict[str, Any]], job: str) -> list[dict[str, Any]]:
    """What a task told when it ended, each time."""
    return [e for e in events if e["job"]["name"] == job and e["eventType"] == "COMPLETE"]


def facet(event: dict[str, Any]) -> dict[str, Any]:
    """What a stage says of itself."""
    return dict(event["run"]["facets"].get("evergreen", {}))


def git(folder: Path, *arguments: str) -> str:
    """What Git says in a working tree, as somebody."""
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    command = ["git", "-C", str(folder), *who, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def _remote(folder: Path) -> Path:
    """A bare repository with a folder for DAGs in its first commit."""
    first, bare = folder / "first", folder / "remote.git"
    (first / "dags").mkdir(parents=True)
    (first / "dags" / ".gitkeep").touch()
    subprocess.run(["git", "init", "-q", "-b", "main", first], check=True)
    git(first, "add", "--all")
    git(first, "commit", "-q", "-m", "A place for DAGs")
    subprocess.run(["git", "clone", "-q", "--bare", first, bare], check=True)
    return bare


def _bundles(folder: Path, remote: Path) -> dict[str, str]:
    """Where DAGs are: in the DAGs folder, and in the repository."""
    here = {
        "name": "dags-folder",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"refresh_interval": 5},
    }
    there = {
        "name": "repository",
        "classpath": "airflow.providers.git.bundles.git.GitDagBundle",
        "kwargs": {
            "repo_url": str(remote),
            "tracking_ref": "main",
            "subdir": "dags",
            "refresh_interval": 5,
        },
    }
    return {
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([here, there]),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(folder / "bundles"),
    }


@contextmanager
def share(folder: Path) -> Iterator[Shared]:
    """Start it; nothing of it is left after the block."""
    project, mails, receiver = folder / "project", [], Receiver()
    hidden = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "dags", project / "dags", ignore=hidden)
    (project / "include" / "models").mkdir(parents=True)
    furnish(project / "home")

    class Handler:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
            mails.append(message_from_bytes(envelope.content, policy=policy.default))
            return "250 OK"

    mail_server = Controller(Handler(), hostname="127.0.0.1", port=free_port())
    mail_server.start()
    events = folder / "lineage.jsonl"
    options = {"disable_ssl": True, "disable_tls": True, "from_email": "evergreen@example.com"}
    mail = {"conn_type": "smtp", "host": "127.0.0.1", "port": mail_server.port, "extra": options}
    transport = {"type": "file", "log_file_path": str(events), "append": True}
    extra = {
        "AIRFLOW_CONN_MAIL": json.dumps(mail),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,vera:op",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",  # no secret may be there either
        "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
        "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True",
        "AIRFLOW__METRICS__STATSD_ON": "True",
        "AIRFLOW__METRICS__STATSD_PORT": str(receiver.port),
        "AIRFLOW__OPENLINEAGE__NAMESPACE": "tests",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
        "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "1",
        "EVERGREEN_HOME": str(project / "home"),
    }
    dags, home, remote = project / "dags", folder / "airflow", _remote(folder)
    extra |= _bundles(folder, remote)
    try:
        with (
            services.s3() as aws,
            Standalone(home, dags=dags, plugins=PLUGINS, extra=extra | aws.environment) as airflow,
            airflow.client() as client,
        ):
            yield Shared(project, remote, airflow, client, aws, events, receiver, mails)
    finally:
        mail_server.stop()
        receiver.close()
