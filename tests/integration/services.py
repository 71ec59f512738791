"""The services that a deployment stands on, for tests: PostgreSQL, Redis and S3, on loopback.

Each is the real program (S3: moto's server) in a process of its own, with a free port and a folder
that is removed at the end; or the one that a variable names:

- ``EVERGREEN_TEST_POSTGRES_URL`` like ``postgresql://user:password@127.0.0.1:5432``
- ``EVERGREEN_TEST_REDIS_URL`` like ``redis://127.0.0.1:6379``
- ``EVERGREEN_TEST_S3_URL`` like ``http://127.0.0.1:9000``, with AWS's own variables for the keys

A composed topology takes none that is named: it fills its services, and faults restart them. A
program that isn't installed skips the test and says so.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from evergreen.standalone import HOST, free_port
from tests.integration.processes import Process, wait_until

STARTED = 30.0  # seconds
POSTGRES_USER = "evergreen"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-secret"}
REGION = "eu-central-1"


@dataclass
class Service:
    """A service at ``url``.

    :ivar process: None when a variable named the service: it isn't the test's to stop.
    """

    url: str
    process: Process | None = None

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None, f"{self.url} has no port"
        return port

    @property
    def password(self) -> str:
        """The one in its URL, or none."""
        return urlsplit(self.url).password or ""

    @property
    def hostport(self) -> str:
        """``host:port``."""
        return f"{urlsplit(self.url).hostname}:{self.port}"

    @property
    def pid(self) -> int:
        return self._own.pid

    @property
    def _own(self) -> Process:
        if self.process is None:
            pytest.skip(f"the service at {self.hostport} is named by a variable: not ours to stop")
        return self.process

    def start(self) -> None:
        """Start it, and wait until it answers; on the same port as before."""
        self._own.start()
        wait_until(
            self.answers,
            what=f"{self._own.name} answers at {self.hostport}",
            timeout=STARTED,
            of=[self._own],
        )

    def stop(self) -> None:
        """End it as an operator would."""
        self._own.stop()

    def kill(self) -> None:
        """SIGKILL it."""
        self._own.kill()

    def restart(self) -> None:
        """End it and start it again."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Let it hang, with its connections open."""
        self._own.pause()

    def resume(self) -> None:
        """Let it go on."""
        self._own.resume()

    def answers(self) -> bool:
        """Whether it can be used now."""
        raise NotImplementedError


@dataclass
class PostgresService(Service):
    """A PostgreSQL server; ``url`` names no database."""

    _databases: dict[str, str] = field(default_factory=dict)

    def create(self, database: str) -> str:
        """The URL of a database, made on first use.

        On a server that isn't the test's own its name gets a suffix, and `drop` removes it.
        """
        import psycopg2
        from psycopg2 import sql

        if database not in self._databases:
            name = database if self.process else f"{database}_{secrets.token_hex(4)}"
            connection = psycopg2.connect(f"{self.url}/postgres", connect_timeout=5)
            try:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            finally:
                connection.close()
            self._databases[database] = name
        return f"{self.url}/{self._databases[database]}"

    def drop(self) -> None:
        """Remove the databases that `create` made."""
        import psycopg2
        from psycopg2 import sql

        connection = psycopg2.connect(f"{self.url}/postgres", connect_timeout=5)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for name in self._databases.values():
                    statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
                    cursor.execute(statement.format(sql.Identifier(name)))
        finally:
            connection.close()
        self._databases.clear()

    def answers(self) -> bool:
        import psycopg2

        try:
            psycopg2.connect(f"{self.url}/postgres", connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True


@dataclass
class RedisService(Service):
    """A Redis server; ``url`` names no database number."""

    def answers(self) -> bool:
        import redis

        with redis.Redis.from_url(self.url, socket_timeout=2) as client:
            try:
                return bool(client.ping())
            except (redis.ConnectionError, redis.TimeoutError):  # starting: also "loading"
                return False


@dataclass
class S3Service(Service):
    """An S3-compatible store; with moto's server every other AWS service answers there too."""

    keys: dict[str, str] = field(default_factory=lambda: dict(KEYS))

    @property
    def endpoint(self) -> str:
        """Its address, for ``AWS_ENDPOINT_URL``."""
        return self.url

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which AWS's clients find it."""
        return {**self.keys, "AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": REGION}

    @property
    def storage_options(self) -> dict[str, Any]:
        """The same for s3fs and `evergreen.store.Store`."""
        return {
            "key": self.keys["AWS_ACCESS_KEY_ID"],
            "secret": self.keys["AWS_SECRET_ACCESS_KEY"],
            "endpoint_url": self.url,
            "client_kwargs": {"region_name": REGION},
        }

    def client(self, service: str = "s3") -> Any:
        """A boto3 client of one of its services."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=self.keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.keys["AWS_SECRET_ACCESS_KEY"],
            config=Config(proxies={}),  # a proxy of the environment must not stand before loopback
        )

    def create(self, bucket: str) -> str:
        """Make a bucket, unless it is there; returns ``s3://bucket``."""
        client = self.client()
        if bucket not in {it["Name"] for it in client.list_buckets()["Buckets"]}:
            where = {"LocationConstraint": REGION}
            client.create_bucket(Bucket=bucket, CreateBucketConfiguration=where)
        return f"s3://{bucket}"

    def answers(self) -> bool:
        import httpx

        try:
            httpx.get(f"{self.url}/", timeout=2, trust_env=False)
        except httpx.TransportError:
            return False
        return True


@contextmanager
def postgres(*, own: bool = False) -> Iterator[PostgresService]:
    """A PostgreSQL server of the test's own, or the named one.

    :param own: True for one that a test restarts or kills. It then writes as in production: data
        survive a SIGKILL either way, for the page cache does.
    """
    if not own and (named := os.environ.get("EVERGREEN_TEST_POSTGRES_URL")):
        there = PostgresService(named.rstrip("/"))
        try:
            yield there
        finally:
            there.drop()
        return
    binaries = _postgres_binaries()
    password, port = secrets.token_urlsafe(12), free_port()
    # Its user must be able to reach it: pytest's own folders are closed to others.
    with _folder("postgres") as folder:
        data = _initialised(folder, binaries, password)
        command = [
            *_as_postgres(), str(binaries / "postgres"), "-D", str(data), "-p", str(port),
            "-c", f"listen_addresses={HOST}", "-c", f"unix_socket_directories={folder}",
            "-c", "max_connections=200", "-c", "timezone=UTC",
        ]  # fmt: skip
        if not own:
            command += ["-c", "fsync=off", "-c", "full_page_writes=off"]
        process = Process(
            "postgres",
            command,
            environment=_environment(),
            folder=folder,
            log=folder / "log",
            ending=signal.SIGINT,  # "fast": doesn't wait for its clients to leave
        )
        service = PostgresService(f"postgresql://{POSTGRES_USER}:{password}@{HOST}:{port}", process)
        with _running(service):
            yield service


@contextmanager
def redis(*, own: bool = False) -> Iterator[RedisService]:
    """A Redis server of the test's own, or the named one.

    :param own: True for one that a test restarts or kills. It then asks for a password.
    """
    if not own and (named := os.environ.get("EVERGREEN_TEST_REDIS_URL")):
        yield RedisService(named.rstrip("/"))
        return
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server isn't installed (Debian: apt-get install redis-server)")
    port, password = free_port(), secrets.token_hex(16) if own else ""
    with _folder("redis") as folder:
        # What it holds survives a restart, a SIGKILL too: the file is appended at each write.
        command = [
            program, "--bind", HOST, "--port", str(port), "--dir", str(folder),
            "--save", "", "--appendonly", "yes", "--appendfsync", "everysec",
        ]  # fmt: skip
        command += ["--requirepass", password] if password else []
        process = Process(
            "redis", command, environment=_environment(), folder=folder, log=folder / "log"
        )
        login = f":{password}@" if password else ""
        with _running(service := RedisService(f"redis://{login}{HOST}:{port}", process)):
            yield service


@contextmanager
def s3(*, own: bool = False) -> Iterator[S3Service]:
    """An S3-compatible store of the test's own (moto's server, in memory), or the named one.

    :param own: True for one that must be empty.
    """
    if not own and (named := os.environ.get("EVERGREEN_TEST_S3_URL")):
        keys = {name: os.environ.get(name, value) for name, value in KEYS.items()}
        yield S3Service(named.rstrip("/"), keys=keys)
        return
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        pytest.skip("moto's server isn't installed (pip install 'moto[server]')")
    port = free_port()
    with _folder("s3") as folder:
        process = Process(
            "s3",
            [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)],
            environment=_environment(),
            folder=folder,
            log=folder / "log",
        )
        with _running(service := S3Service(f"http://{HOST}:{port}", process)):
            yield service


@contextmanager
def _running(service: Service) -> Iterator[None]:
    try:
        service.start()
        yield
    finally:
        service.stop()


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"evergreen-{name}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    """What a service needs of ours: none of a test's own settings."""
    wanted = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in wanted if name in os.environ}


def _postgres_binaries() -> Path:
    """The folder of `initdb` and `postgres`: on the path, or where Debian puts them."""
    found = [Path(it).parent for it in [shutil.which("initdb")] if it]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    pytest.skip("PostgreSQL isn't installed (Debian: apt-get install postgresql)")


def _as_postgres() -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid():
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


def _initialised(folder: Path, binaries: Path, password: str) -> Path:
    data, secret = folder / "data", folder / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    if not os.geteuid():
        for path in (folder, secret):
            shutil.chown(path, "postgres", "postgres")
    done = subprocess.run(
        [
            *_as_postgres(), str(binaries / "initdb"), "-D", str(data), "-U", POSTGRES_USER,
            "--pwfile", str(secret), "--auth", "scram-sha-256", "--encoding", "UTF8",
            "--locale", "C.UTF-8", "--no-sync",
        ],
        env=_environment(), cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return data
