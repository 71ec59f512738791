"""What a deployment's services must hold: made when missing, the same when made again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from evergreen.errors import EvergreenError, UnavailableError
from evergreen.provisioning import PASSWORDS, PLACEHOLDER, provision
from evergreen.standalone import HOST, free_port
from tests.integration.services import KEYS, REGION, PostgresService, S3Service, postgres, s3

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresService]:
    with postgres() as it:
        yield it


@pytest.fixture(scope="module")
def store() -> Iterator[S3Service]:
    with s3() as it:
        yield it


def test_databases_are_made_once(database: PostgresService) -> None:
    wanted = {
        "EVERGREEN_PROVISION_POSTGRES": f"{database.url}/postgres",
        "EVERGREEN_PROVISION_DATABASES": 'ledger, feast,we"ird',
    }
    for _ in range(2):
        assert provision(wanted) == ["database ledger", "database feast", 'database we"ird']
    import psycopg2

    connection = psycopg2.connect(f"{database.url}/ledger")
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        assert {"ledger", "feast", 'we"ird'} <= {row[0] for row in cursor.fetchall()}
    connection.close()


def test_two_at_once_make_them_once(database: PostgresService) -> None:
    wanted = {
        "EVERGREEN_PROVISION_POSTGRES": f"{database.url}/postgres",
        "EVERGREEN_PROVISION_DATABASES": ",".join(f"d{number}" for number in range(4)),
    }
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: provision(wanted), range(4)))
    assert all(lines == found[0] for lines in found)


@pytest.mark.parametrize("region", ["eu-central-1", "us-east-1"])
def test_the_bucket_is_made_once(
    store: S3Service, region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"evergreen-{region}"
    environment = {**store.environment, "AWS_DEFAULT_REGION": region}
    del environment["AWS_ENDPOINT_URL"]
    for variable, value in {**environment, "AWS_ENDPOINT_URL_S3": store.url}.items():
        monkeypatch.setenv(variable, value)
    for _ in range(2):
        assert provision({"EVERGREEN_STORE_URI": f"s3://{name}/store"}) == [f"bucket {name}"]
    assert name in {it["Name"] for it in store.client().list_buckets()["Buckets"]}


@contextmanager
def bucket_that_answers(status: int) -> Iterator[tuple[str, list[str]]]:
    """S3 as credentials see it that may not list all buckets; and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(status if self.command == "HEAD" else 403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET = do_PUT = answer  # noqa: N815 - the names that http.server calls

        def log_message(self, *said: object) -> None:
            pass

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://{HOST}:{server.server_port}", asked
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "raised", "said"),
    [
        (200, None, ""),
        (403, EvergreenError, r"EVERGREEN_STORE_URI: the bucket taken is another account's, or"),
        (500, UnavailableError, "the bucket at taken can't be reached"),
    ],
)
def test_no_right_to_list_all_buckets_is_needed(
    status: int, raised: type[Exception] | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bucket_that_answers(status) as (url, asked):
        for name, value in {
            **KEYS, "AWS_ENDPOINT_URL_S3": url, "AWS_DEFAULT_REGION": REGION, "NO_PROXY": HOST,
            "AWS_MAX_ATTEMPTS": "1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        wanted = {"EVERGREEN_STORE_URI": "s3://taken/store"}
        if raised is None:
            assert provision(wanted) == ["bucket taken"]
        else:
            with pytest.raises(raised, match=said) as found:
                provision(wanted)
            assert type(found.value) is raised
        assert asked == ["HEAD /taken"]


def test_a_store_of_files_needs_no_bucket() -> None:
    assert provision({"EVERGREEN_STORE_URI": "file:///somewhere"}) == []


def test_the_password_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "auth" / "passwords.json"
    path.parent.mkdir()
    path.write_text("{}")
    wanted = {"EVERGREEN_ADMIN_PASSWORD": "s3cret", PASSWORDS: str(path)}
    assert provision(wanted) == ["the password of admin"]
    assert json.loads(path.read_text()) == {"admin": "s3cret"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [it.name for it in path.parent.iterdir()] == [path.name]


def test_a_placeholder_is_refused_by_name_and_nothing_is_made(tmp_path: Path) -> None:
    path = tmp_path / "passwords.json"
    wanted = {
        "EVERGREEN_ADMIN_PASSWORD": "fine",
        PASSWORDS: str(path),
        "A_URL": f"redis://:{PLACEHOLDER}@redis:6379/0",
    }
    with pytest.raises(EvergreenError, match=r"A_URL: still holds 'change-me'.*openssl"):
        provision(wanted)
    assert not path.exists()


def test_a_server_that_is_away_is_named_without_its_password() -> None:
    wanted = {
        "EVERGREEN_PROVISION_POSTGRES": f"postgresql://me:hidden@127.0.0.1:{free_port()}/postgres",
        "EVERGREEN_PROVISION_DATABASES": "ledger",
    }
    with pytest.raises(UnavailableError, match="PostgreSQL at postgresql://me:") as found:
        provision(wanted)
    assert "hidden" not in str(found.value)


def test_the_command_says_what_there_is_and_fails_in_one_line() -> None:
    command = [sys.executable, "-m", "evergreen.provisioning"]
    good = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    bad = subprocess.run(
        command, env={**os.environ, "SOME_SECRET": PLACEHOLDER}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert bad.returncode == 1
    assert bad.stderr.startswith("SOME_SECRET: still holds")
    assert "Traceback" not in bad.stderr
