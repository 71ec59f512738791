"""A self-contained Airflow under one folder, for the demo, the replay and the scenario tests.

The components run below `evergreen.keeper`, not `airflow standalone`, which serves logs on every
interface and leaves its children behind when it is killed. Starting takes as long either way.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import httpx

from evergreen import keeper

if TYPE_CHECKING:
    from evergreen.airflow_client import AirflowClient

HOST = "127.0.0.1"
USER = "admin"

FIXED = {
    "AIRFLOW__API__HOST": HOST,
    "AIRFLOW__API__WORKERS": "1",
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__CORE__EXECUTOR": "evergreen.executors.WarmLocalExecutor",
    "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "5",
    # A worker lingers after its task: while the exit of a large process is missed, its supervisor
    # sleeps for a heartbeat. So more workers, shorter heartbeats, and the pool bounds the work.
    "AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT": "4",
    "AIRFLOW__CORE__PARALLELISM": "16",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
    "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
    # A changed model.yaml is seen within a minute; a changed DAG file within five seconds.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
    "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.25",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_COLOR": "1",
    # Stages run side by side; OpenMP threads that spin while they wait take each other's cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENBLAS_NUM_THREADS": "1",  # these spin, whatever is set
    "NO_PROXY": f"{HOST},localhost",
}


class StandaloneError(RuntimeError):
    """Airflow did not start; the message ends with the last lines of its log."""


def environment(
    home: Path, *, dags: Path, plugins: Path, port: int, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the variables that make Airflow live in `home` and listen on `port` of loopback.

    The secrets derive from one random file below `home`, so that every component, and every
    later start, agrees on them. `extra` wins over all other settings.
    """
    url = f"http://{HOST}:{port}"
    return {
        **FIXED,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__SECRET_KEY": _secret(home, "session"),
        "AIRFLOW__API_AUTH__JWT_SECRET": _secret(home, "jwt"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__FERNET_KEY": _secret(home, "fernet"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(plugins),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(_passwords(home)),
        # SQLite has one writer at a time; on a busy machine five seconds, its default, are few.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}?timeout=60",
        "EVERGREEN_HOME": str(home / "evergreen"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        **(extra or {}),
    }


class Standalone:
    """Airflow as a context manager: healthy inside the block, gone after it.

    :param home: the folder that holds the database, logs and secrets; made when missing
    :param dags: the DAGs folder
    :param plugins: the plugins folder
    :param port: where the API server listens; 0 picks a free port
    :param extra: further environment variables, which win over the others
    :param timeout: seconds until Airflow must be healthy
    """

    def __init__(
        self,
        home: Path,
        *,
        dags: Path,
        plugins: Path,
        port: int = 0,
        extra: Mapping[str, str] | None = None,
        timeout: float = 180.0,
    ) -> None:
        self.home = home.resolve()
        self.home.mkdir(parents=True, exist_ok=True)
        port = port or free_port()
        self.url = f"http://{HOST}:{port}"
        self.log_file = self.home / "airflow.log"
        self.environment = environment(
            self.home, dags=dags.resolve(), plugins=plugins.resolve(), port=port, extra=extra
        )
        self.timeout = timeout
        self._keeper: subprocess.Popen[bytes] | None = None

    @property
    def password(self) -> str:
        """The password of the user `admin`."""
        return str(json.loads(_passwords(self.home).read_text())[USER])

    def client(self) -> AirflowClient:
        """Return a client that is logged in as `admin`."""
        from evergreen.airflow_client import AirflowClient

        return AirflowClient(self.url, USER, self.password)

    def pids(self) -> set[int]:
        """Return the processes that run for this Airflow."""
        return keeper.members(self._keeper.pid) if self._keeper else set()

    def __enter__(self) -> Self:
        since = time.time()
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW__")}
        with self.log_file.open("wb") as log:
            self._keeper = subprocess.Popen(  # noqa: S603 (our own interpreter and file)
                [sys.executable, "-P", keeper.__file__],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=inherited | self.environment,
                cwd=self.home,
                start_new_session=True,
            )
        try:
            self._wait(self._keeper, since)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process of this Airflow; do nothing when none runs."""
        process, self._keeper = self._keeper, None
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            process.wait(keeper.GRACE + 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            keeper.kill_session(process.pid)

    def _wait(self, process: subprocess.Popen[bytes], since: float) -> None:
        """Return when the scheduler and the DAG processor have sent a heartbeat after `since`."""
        deadline = time.monotonic() + self.timeout
        while not _is_healthy(self.url, since):
            if process.poll() is not None:
                raise StandaloneError(f"Airflow ended while starting:\n{self._tail()}")
            if time.monotonic() > deadline:
                late = f"Airflow was not healthy within {self.timeout:g} s"
                raise StandaloneError(f"{late}:\n{self._tail()}")
            time.sleep(0.1)

    def _tail(self, lines: int = 40) -> str:
        text = self.log_file.read_text(errors="replace")
        return "\n".join([*text.splitlines()[-lines:], f"(the whole log: {self.log_file})"])


def _is_healthy(url: str, since: float) -> bool:
    """Ask Airflow; a heartbeat from before `since` is that of an earlier start."""
    try:
        answer = httpx.get(f"{url}/api/v2/monitor/health", timeout=5.0, trust_env=False)
        health = answer.raise_for_status().json()
    except httpx.HTTPError:
        return False
    beats = (health[it].get(f"latest_{it}_heartbeat") for it in ("scheduler", "dag_processor"))
    return all(beat and datetime.fromisoformat(beat).timestamp() >= since for beat in beats)


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _passwords(home: Path) -> Path:
    """Return the file with the users' passwords, written on first use."""
    path = home / "passwords.json"
    if not path.exists():
        _write_private(path, json.dumps({USER: secrets.token_urlsafe(12)}))
    return path


def _secret(home: Path, purpose: str) -> str:
    """Derive 32 bytes for `purpose`, in the encoding of a Fernet key, from the home's secret."""
    path = home / "secret"
    if not path.exists():
        _write_private(path, secrets.token_hex(32))
    key = bytes.fromhex(path.read_text())
    digest = hashlib.blake2b(purpose.encode(), key=key, digest_size=32).digest()
    return urlsafe_b64encode(digest).decode()


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
