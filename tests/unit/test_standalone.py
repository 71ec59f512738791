"""The environment of a standalone Airflow, and what a failed start says."""

from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from evergreen.standalone import Standalone, StandaloneError, environment, free_port

SECRETS = ("AIRFLOW__API__SECRET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__CORE__FERNET_KEY")


def build(home: Path, **extra: str) -> dict[str, str]:
    """Return the environment for `home` with fixed folders and port."""
    return environment(home, dags=Path("/dags"), plugins=Path("/plugins"), port=8123, extra=extra)


def test_airflow_lives_in_its_home_and_listens_on_loopback(tmp_path: Path) -> None:
    env = build(tmp_path)
    assert env["AIRFLOW_HOME"] == str(tmp_path)
    assert env["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert env["AIRFLOW__API__BASE_URL"] == "http://127.0.0.1:8123"
    assert env["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8123/execution/"
    assert (
        env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == f"sqlite:///{tmp_path}/airflow.db?timeout=60"
    )
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_secrets_differ_by_purpose_and_home_but_not_by_start(tmp_path: Path) -> None:
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        home.mkdir()
    first, again, other = build(homes[0]), build(homes[0]), build(homes[1])
    assert first == again
    assert len({env[name] for env in (first, other) for name in SECRETS}) == 2 * len(SECRETS)
    Fernet(first["AIRFLOW__CORE__FERNET_KEY"])


def test_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    build(tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"passwords.json": 0o600, "secret": 0o600}


def test_extra_variables_win(tmp_path: Path) -> None:
    env = build(tmp_path, AIRFLOW__CORE__EXECUTOR="LocalExecutor", MINE="1")
    assert (env["AIRFLOW__CORE__EXECUTOR"], env["MINE"]) == ("LocalExecutor", "1")


def test_the_password_is_made_once(tmp_path: Path) -> None:
    starts = [Standalone(tmp_path, dags=tmp_path, plugins=tmp_path, port=1) for _ in range(2)]
    assert starts[0].password == starts[1].password
    assert len(starts[0].password) >= 16


def test_a_free_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass


def test_stopping_what_never_started_does_nothing(tmp_path: Path) -> None:
    airflow = Standalone(tmp_path, dags=tmp_path, plugins=tmp_path)
    airflow.stop()
    assert airflow.pids() == set()


def test_a_failed_start_shows_the_log(tmp_path: Path) -> None:
    broken = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "nonsense://"}
    airflow = Standalone(tmp_path, dags=tmp_path, plugins=tmp_path, extra=broken, timeout=60)
    with pytest.raises(StandaloneError, match=r"ended while starting:\n(.|\n)*nonsense"), airflow:
        pass
    assert airflow.pids() == set()
