"""A self-contained Airflow under one folder, for the demo, the replay and the scenario tests.

The components run in a session of their own below a *keeper*: this very file, started as a
script. The keeper ends when the pipe to its parent closes, which the kernel does however the
parent dies, and takes the whole session with it: tasks too, which Airflow puts in process groups
of their own. `airflow standalone` is not used, because it serves logs on every interface and
leaves its children behind when it is killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import httpx
import psutil

if TYPE_CHECKING:
    from evergreen.airflow_client import AirflowClient

HOST = "127.0.0.1"
USER = "admin"
COMPONENTS = (
    ("api-server",),
    ("scheduler", "--skip-serve-logs"),  # logs are read from disk: no listener for them
    ("dag-processor",),
    ("triggerer", "--skip-serve-logs"),
)
#: Seconds that the components get to end by themselves.
GRACE = 15.0

FIXED = {
    "AIRFLOW__API__HOST": HOST,
    "AIRFLOW__API__WORKERS": "1",
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__CORE__EXECUTOR": "evergreen.executors.WarmLocalExecutor",
    "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "5",
    "AIRFLOW__CORE__PARALLELISM": "4",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
    "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
    "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_COLOR": "1",
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
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
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
        return members(self._keeper.pid) if self._keeper else set()

    def __enter__(self) -> Self:
        since = datetime.now(UTC)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW__")}
        with self.log_file.open("wb") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-P", __file__],
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
        keeper, self._keeper = self._keeper, None
        if keeper is None or keeper.stdin is None:
            return
        keeper.stdin.close()
        try:
            keeper.wait(GRACE + 5)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()
        finally:
            kill_session(keeper.pid)

    def _wait(self, keeper: subprocess.Popen[bytes], since: datetime) -> None:
        """Return when the scheduler and the DAG processor have sent a heartbeat after `since`."""
        deadline = time.monotonic() + self.timeout
        while not _is_healthy(self.url, since):
            if keeper.poll() is not None:
                raise StandaloneError(f"Airflow ended while starting:\n{self._tail()}")
            if time.monotonic() > deadline:
                late = f"Airflow was not healthy within {self.timeout:g} s"
                raise StandaloneError(f"{late}:\n{self._tail()}")
            time.sleep(0.1)

    def _tail(self, lines: int = 40) -> str:
        text = self.log_file.read_text(errors="replace")
        return "\n".join([*text.splitlines()[-lines:], f"(the whole log: {self.log_file})"])


def _is_healthy(url: str, since: datetime) -> bool:
    """Ask Airflow; a heartbeat from before `since` is that of an earlier start."""
    try:
        answer = httpx.get(f"{url}/api/v2/monitor/health", timeout=5.0, trust_env=False)
        health = answer.raise_for_status().json()
    except httpx.HTTPError:
        return False
    beats = (health[it].get(f"latest_{it}_heartbeat") for it in ("scheduler", "dag_processor"))
    return all(beat and datetime.fromisoformat(beat) >= since for beat in beats)


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def members(session: int) -> set[int]:
    """Return the living processes of a session."""
    found = set()
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return found


def kill_session(session: int, timeout: float = 5.0) -> None:
    """Kill every process of `session` but the caller, and wait until they are gone."""
    deadline = time.monotonic() + timeout
    while (left := members(session) - {os.getpid()}) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def keep() -> int:
    """Run the components until the parent closes our stdin; return 1 when one ended before."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running: list[subprocess.Popen[bytes]] = []
    try:
        running.append(_airflow("db", "migrate"))
        if _watch(running) and running.pop().returncode == 0:
            running += [_airflow(*component) for component in COMPONENTS]
            return int(_watch(running))
        return int(any(it.returncode for it in running))
    finally:
        _end(running)
        kill_session(os.getpid())


def _airflow(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "airflow", *arguments], stdin=subprocess.DEVNULL)


def _watch(running: Sequence[subprocess.Popen[bytes]]) -> bool:
    """Wait for the parent to go (False) or for one of `running` to end (True)."""
    while not any(process.poll() is not None for process in running):
        if select.select([sys.stdin], [], [], 0.1)[0]:
            return False
    return True


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask the components to end, the scheduler with its tasks, and wait for as long as `GRACE`."""
    deadline = time.monotonic() + GRACE
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            continue


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


if __name__ == "__main__":
    sys.exit(keep())
