"""docker-compose.yaml without Docker: its services of our own image, as processes.

Each is run by the very command and variables that the file declares, with the image's own variables
from the Dockerfile, in the order of its `depends_on`, and each waits for the declared health checks.
What differs is only what the file leaves open: names of hosts become 127.0.0.1, ports free ones,
secrets fresh ones (all of these are variables of `.env.example`), and the image's folder
``/opt/evergreen`` one of the test's. PostgreSQL, Redis and S3 come from `tests.integration.services`.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

from evergreen.airflow_client import AirflowClient
from evergreen.standalone import HOST, free_port
from evergreen.workspace import Workspace
from tests.integration import services
from tests.integration.processes import Process, wait_until

PROJECT = Path(__file__).parents[2]
IMAGE_FOLDER = "/opt/evergreen"
STARTED = 240.0  # seconds for all of it; a machine may be busy
#: What isn't an image of our own, and which of our services stands for it.
SERVICES = ("postgres", "redis", "s3")
ONCE = "service_completed_successfully"

_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<kind>:-|:\?)(?P<text>[^}]*))?\})"
)


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """Fill in ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}``; ``$$`` is a dollar.

    :raises KeyError: when a required one is missing or empty.
    """

    def fill(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        value = variables.get(found["name"], "")
        if value:
            return value
        if found["kind"] == ":-":
            return found["text"]
        raise KeyError(f"{found['name']}: {found['text'] or 'is not set'}")

    return _VARIABLE.sub(fill, text)


def read_variables(path: Path = PROJECT / ".env.example") -> dict[str, str]:
    """The ``NAME=value`` lines of an environment file."""
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def read_compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """docker-compose.yaml with its variables filled in."""

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return interpolate(value, variables)
        if isinstance(value, list):
            return [filled(it) for it in value]
        if isinstance(value, dict):
            return {key: filled(it) for key, it in value.items()}
        return value

    content: dict[str, Any] = filled(yaml.safe_load((PROJECT / "docker-compose.yaml").read_text()))
    return content


def image_variables(path: Path = PROJECT / "Dockerfile") -> dict[str, str]:
    """The variables that the image itself sets, but for PATH: programs lie elsewhere here."""
    final = path.read_text().rpartition("\nFROM ")[2]
    block = re.search(r"^ENV ((?:.*\\\n)*.*)$", final, re.MULTILINE)
    assert block is not None, f"{path} sets no variables in its last stage"
    pairs = (it.split("=", 1) for it in block[1].replace("\\\n", " ").split())
    return {name: value for name, value in pairs if name != "PATH"}


@dataclass
class Topology:
    """What runs.

    :ivar folder: stands for the image's ``/opt/evergreen``.
    :ivar variables: what a `.env` would hold.
    :ivar processes: service → process.
    """

    folder: Path
    variables: dict[str, str]
    compose: dict[str, Any]
    postgres: services.PostgresService
    redis: services.RedisService
    s3: services.S3Service
    processes: dict[str, Process] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Airflow's address."""
        return f"http://{HOST}:{self.variables['AIRFLOW_PORT']}"

    @property
    def mlflow_url(self) -> str:
        return f"http://{HOST}:{self.variables['MLFLOW_PORT']}"

    @property
    def airflow(self) -> AirflowClient:
        """A client that is logged in as ``admin``; the caller closes it."""
        return AirflowClient(self.url, "admin", self.variables["AIRFLOW_ADMIN_PASSWORD"])

    @property
    def workspace(self) -> Workspace:
        """The deployment's places, as a stage in a worker sees them.

        The store gets its keys by hand: this process has no variables of AWS's.
        """
        return Workspace.from_environment(
            self.environment("celery-worker"), store_options=self.s3.storage_options
        )

    @property
    def logs(self) -> dict[str, Path]:
        """Service → what it printed."""
        return {name: process.log for name, process in self.processes.items()}

    def environment(self, name: str) -> dict[str, str]:
        """All the variables of a service's process."""
        declared = {**image_variables(), **self.compose["services"][name].get("environment", {})}
        return {**_base(), **{key: self._here(str(value)) for key, value in declared.items()}}

    def start(self, name: str) -> None:
        """Start a service, and wait until it is healthy; on the same port as before."""
        self.processes[name].start()
        self.wait_for(name)

    def stop(self, name: str) -> None:
        """End a service as ``docker compose stop`` would."""
        self.processes[name].stop()

    def kill(self, name: str) -> None:
        """SIGKILL a service with all it has started, as ``docker compose kill`` would."""
        self.processes[name].kill()

    def revive(self) -> None:
        """``restart: unless-stopped``, for what ended by itself."""
        for name, process in self.processes.items():
            restarts = self.compose["services"][name]["restart"] == "unless-stopped"
            if restarts and process.returncode is not None:
                process.start()

    def deploy(self, *, dags: Path, include: Path) -> None:
        """Other DAGs and models in the place of those that are there, as by a new image."""
        self.stop("airflow-dag-processor")
        _copy(self.folder, dags=dags, include=include)
        self.revive()
        self.start("airflow-dag-processor")

    def healthy(self, name: str, timeout: float = 60.0) -> bool:
        """Run the service's declared health check once."""
        test = [self._here(it) for it in self.compose["services"][name]["healthcheck"]["test"]]
        command = test[1:] if test[0] == "CMD" else ["sh", "-c", *test[1:]]
        environment = self.environment(name)
        program = shutil.which(command[0], path=environment["PATH"])
        assert program is not None, f"the health check of {name} asks for {command[0]}"
        done = subprocess.run(
            [program, *command[1:]], env=environment, cwd=self.folder, timeout=timeout,
            capture_output=True, check=False,
        )  # fmt: skip
        return done.returncode == 0

    def wait_for(self, name: str, timeout: float = STARTED) -> None:
        """Wait until a service can be used.

        :raises AssertionError: with the end of its log.
        """
        process, since = self.processes[name], time.time()
        component = {
            "airflow-scheduler": "scheduler",
            "airflow-dag-processor": "dag_processor",
            "airflow-triggerer": "triggerer",
        }.get(name)
        if component:  # the declared checks import Airflow for each look; this is the same answer
            wait_until(
                lambda: self._beats(component, since),
                what=f"{name} is healthy",
                timeout=timeout,
                of=[process],
            )
        elif name == "celery-worker":
            wait_until(self._worker_answers, what=f"{name} answers", timeout=timeout, of=[process])
        else:
            wait_until(
                lambda: self.healthy(name), what=f"{name} is healthy", timeout=timeout, of=[process]
            )

    def _here(self, text: str) -> str:
        return text.replace(IMAGE_FOLDER, str(self.folder))

    def _beats(self, component: str, since: float) -> bool:
        """Whether a component has sent a heartbeat after ``since``."""
        try:
            answer = httpx.get(f"{self.url}/api/v2/monitor/health", timeout=5, trust_env=False)
            health = answer.raise_for_status().json()
        except httpx.HTTPError:
            return False
        beat = (health.get(component) or {}).get(f"latest_{component}_heartbeat")
        return bool(beat) and datetime.fromisoformat(beat).timestamp() >= since

    def _worker_answers(self) -> bool:
        from celery import Celery
        from redis.exceptions import ConnectionError as BrokerError

        broker = self.environment("celery-worker")["AIRFLOW__CELERY__BROKER_URL"]
        with Celery(broker=broker, set_as_current=False) as app:
            try:
                return bool(app.control.ping(timeout=1.0))
            except BrokerError:  # a pooled connection to a broker that was restarted since
                return False


@contextmanager
def topology(
    folder: Path,
    *,
    dags: Path = PROJECT / "dags",
    include: Path = PROJECT / "include",
    without: Sequence[str] = ("serving-1", "serving-2"),
    settings: Mapping[str, str] | None = None,
    s3: services.S3Service | None = None,
) -> Iterator[Topology]:
    """All services of docker-compose.yaml, healthy inside the block and gone after it.

    :param folder: stands for the image's folder; logs are kept in it.
    :param dags: are copied into it, as the image does.
    :param include: the same; its ``models`` are the declared models.
    :param without: services that aren't started. The replicas are left out unless asked for:
        they have nothing to serve before the first promotion.
    :param settings: variables as `.env` would hold, over those of `.env.example`.
    :param s3: a running store that is the caller's; else one is started.
    """
    _copy(folder, dags=dags, include=include)
    for name in ("airflow/logs", "airflow/plugins", "auth", "home", "printed"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with ExitStack() as stack:
        postgres = stack.enter_context(services.postgres(own=True))
        redis = stack.enter_context(services.redis(own=True))
        s3 = s3 or stack.enter_context(services.s3(own=True))
        variables = {
            **read_variables(),
            **_places(postgres, redis, s3),
            **_secrets(postgres, redis, s3),
            **(settings or {}),
        }
        it = Topology(folder, variables, read_compose(variables), postgres, redis, s3)
        it.seconds["services"] = time.monotonic() - began
        stack.callback(_end, it)
        _run_all(it, without)
        it.seconds["all"] = time.monotonic() - began
        yield it


def _copy(folder: Path, **sources: Path) -> None:
    """Put folders in the place of those of the same names."""
    for name, source in sources.items():
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def _run_all(it: Topology, without: Sequence[str]) -> None:
    """Start what is declared, each when what it depends on is there."""
    declared = it.compose["services"]
    it.processes |= {name: _process(it, name) for name in declared if name not in SERVICES}
    waiting = [name for name in it.processes if name not in without]
    there = {*without, *SERVICES}
    while waiting:
        ready = [n for n in waiting if set(declared[n].get("depends_on", {})) <= there]
        assert ready, f"docker-compose.yaml: {waiting} wait for each other"
        for name in ready:
            it.processes[name].start()
        for name in ready:
            if _ends(declared, name):
                _completed(it, name)
            elif any(name in declared[n].get("depends_on", {}) for n in waiting):
                it.wait_for(name)
            there.add(name)
        waiting = [name for name in waiting if name not in there]
    for name in it.processes:
        if name not in without and not _ends(declared, name):
            it.wait_for(name)


def _ends(declared: Mapping[str, Any], name: str) -> bool:
    """Whether others wait for its end."""
    conditions = (it.get("depends_on", {}).get(name, {}) for it in declared.values())
    return any(condition.get("condition") == ONCE for condition in conditions)


def _completed(it: Topology, name: str) -> None:
    process = it.processes[name]
    wait_until(lambda: not process.running, what=f"{name} ends", timeout=STARTED)
    assert process.returncode == 0, f"{name} failed:\n{process.tail()}"


def _process(it: Topology, name: str) -> Process:
    environment = it.environment(name)
    command = [it._here(str(word)) for word in it.compose["services"][name]["command"]]
    program = shutil.which(command[0], path=environment["PATH"])
    assert program is not None, f"{name} runs {command[0]}, which isn't on the path"
    return Process(
        name,
        [program, *command[1:]],
        environment=environment,
        folder=it.folder,
        log=it.folder / "printed" / f"{name}.log",
    )


def _end(it: Topology) -> None:
    """End everything, all at once: what hangs must not keep the others waiting."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max(1, len(it.processes))) as pool:
        for done in [pool.submit(process.stop) for process in it.processes.values()]:
            done.result()


def _base() -> dict[str, str]:
    """What the image's system gives a process; a test's own variables stay out."""
    wanted = ("HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    kept = {name: os.environ[name] for name in wanted if name in os.environ}
    return {**kept, "PATH": path, "NO_PROXY": f"{HOST},localhost"}


def _places(
    postgres: services.PostgresService, redis: services.RedisService, s3: services.S3Service
) -> dict[str, str]:
    ours = ("AIRFLOW", "MLFLOW", "SERVING_1", "SERVING_2", "SCHEDULER_HEALTH")
    ports = {f"{name}_PORT": str(free_port()) for name in ours}
    found = {"POSTGRES": postgres.port, "REDIS": redis.port, "S3": s3.port}
    ports |= {f"{name}_PORT": str(port) for name, port in found.items()}
    hosts = {f"{name}_HOST": HOST for name in ("AIRFLOW", "MLFLOW", *found)}
    # Two cores: what takes turns anyway needs no processes of its own.
    few = {"CELERY_CONCURRENCY": "2", "AIRFLOW_API_WORKERS": "1", "MLFLOW_WORKERS": "1"}
    return {**ports, **hosts, **few, "BIND_HOST": HOST, "AIRFLOW_HEARTBEAT_TIMEOUT": "30"}


def _secrets(
    postgres: services.PostgresService, redis: services.RedisService, s3: services.S3Service
) -> dict[str, str]:
    names = ("AIRFLOW_ADMIN_PASSWORD", "AIRFLOW_SECRET_KEY", "AIRFLOW_JWT_SECRET")
    fresh = {name: secrets.token_hex(32) for name in (*names, "SERVING_API_KEY")}
    fernet = urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return {
        **fresh,
        **s3.keys,
        "AWS_REGION": services.REGION,
        "AIRFLOW_FERNET_KEY": fernet,
        "POSTGRES_PASSWORD": postgres.password,
        "REDIS_PASSWORD": redis.password,
    }
