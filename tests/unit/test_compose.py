"""docker-compose.yaml, .env.example and the Dockerfile: what they declare is safe and complete."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from evergreen.provisioning import PLACEHOLDER
from tests.integration.topology import (
    ONCE,
    PROJECT,
    image_variables,
    interpolate,
    read_compose,
    read_variables,
)

COMPOSE = (PROJECT / "docker-compose.yaml").read_text()
DOCKERFILE = (PROJECT / "Dockerfile").read_text()
#: Words in the name of a variable that say it must not be known to others.
SECRET = re.compile(r"PASSWORD|SECRET|FERNET|KEY(?!.*FILE)|TOKEN")
NOT_SECRET = {"AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"}


def declared() -> dict[str, Any]:
    """The file as it is written, with nothing filled in."""
    services: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
    return services


def filled() -> dict[str, Any]:
    """The file with the example's variables."""
    services: dict[str, Any] = read_compose(read_variables())["services"]
    return services


def settings() -> Iterator[tuple[str, str, str]]:
    """Service, variable, and its value as written."""
    for name, service in declared().items():
        for variable, value in service.get("environment", {}).items():
            yield name, variable, str(value)


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the real program reads; it checks the file against the specification's schema."""
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose isn't installed (Debian: apt-get install docker-compose)")
    done = subprocess.run(
        [program, "--env-file", ".env.example", "config"],
        cwd=PROJECT, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path_factory.mktemp("home"))},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return services


def test_the_specification_accepts_it_and_reads_what_we_run(composed: dict[str, Any]) -> None:
    ours = filled()
    assert set(composed) == set(ours)
    for name, service in ours.items():
        read = {key: str(value) for key, value in composed[name].get("environment", {}).items()}
        assert read == {k: str(v) for k, v in service.get("environment", {}).items()}, name
        words = [word.replace("$$", "$") for word in composed[name]["command"]]  # printed escaped
        assert words == service["command"], name


@pytest.mark.parametrize(
    "broken",
    [
        {"services": {"a": {"image": "a", "no_such_key": 1}}},
        {"services": {"a": {"image": "a", "ports": "8080"}}},
        {"services": {"a": {"image": "a", "depends_on": {"a": {"condition": "sometime"}}}}},
    ],
)
def test_the_program_refuses_what_the_specification_does(broken: Any, tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose isn't installed (Debian: apt-get install docker-compose)")
    (tmp_path / "docker-compose.yaml").write_text(json.dumps(broken))
    done = subprocess.run(
        [program, "config"], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert done.returncode != 0


def test_no_secret_stands_in_the_file() -> None:
    seen = 0
    for service, variable, value in settings():
        if SECRET.search(variable) and variable not in NOT_SECRET:
            assert re.search(r"\$\{\w+:\?[^}]+\}", value), f"{service}: {variable} is {value!r}"
            seen += 1
        bare = re.sub(r"\$\{[^}]*\}", "*", value)
        for password in re.findall(r"(?://[^/@\s]*:([^/@]*)@|password=([^,]*))", bare):
            assert "".join(password) == "*", f"{service}: {variable} holds a password"
            seen += 1
    assert seen > 20


def test_a_missing_secret_stops_it_and_says_what_to_do() -> None:
    known = read_variables()
    required = set(re.findall(r"\$\{(\w+):\?", COMPOSE))
    assert {"POSTGRES_PASSWORD", "AIRFLOW_FERNET_KEY", "SERVING_API_KEY"} <= required
    for name in required:
        with pytest.raises(KeyError, match=rf"{name}: put {name} into \.env, see \.env\.example"):
            read_compose({**known, name: ""})


def test_secrets_of_the_example_are_placeholders_and_all_are_named() -> None:
    known = read_variables()
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE))
    assert used == set(known), "docker-compose.yaml and .env.example name different variables"
    for name, value in known.items():
        secret = SECRET.search(name) and name != "AWS_ACCESS_KEY_ID"
        assert (value == PLACEHOLDER) == bool(secret), name


def test_defaults_are_those_of_the_example() -> None:
    known = read_variables()
    for name, default in re.findall(r"(?<!\$)\$\{(\w+):-([^}]*)\}", COMPOSE):
        assert default == known[name], name


def test_ports_are_published_on_loopback_alone() -> None:
    published = [port for service in filled().values() for port in service.get("ports", [])]
    assert len(published) == 4
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), port


@pytest.mark.parametrize("name", declared())
def test_each_service_is_restarted_and_watched(name: str) -> None:
    service, every = declared()[name], declared().values()
    ends = any(it.get("depends_on", {}).get(name, {}).get("condition") == ONCE for it in every)
    assert service["restart"] == ("on-failure" if ends else "unless-stopped")
    if ends:
        assert service["healthcheck"] == {"disable": True}
        return
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert {"interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"])


@pytest.mark.parametrize("name", declared())
def test_each_service_has_few_rights(name: str) -> None:
    service = declared()[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    if name != "s3":  # its image knows no user; it has none of root's capabilities
        assert service["user"].partition(":")[0] not in {"", "root", "0"}


def test_who_waits_waits_for_what_exists() -> None:
    services = declared()
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, f"{name} waits for {other}"
            assert how["condition"] in {ONCE, "service_healthy"}, f"{name}: {how}"


def test_images_are_named_by_a_version() -> None:
    for name, service in filled().items():
        _, _, tag = service["image"].rpartition(":")
        if not service["image"].startswith("evergreen:"):
            assert any(it.isdigit() for it in tag), f"{name}: {service['image']}"


def test_variables_are_filled_in_as_compose_does() -> None:
    known = {"A": "1", "EMPTY": ""}
    assert interpolate("${A}-${B:-2}-${EMPTY:-3}-$$A-$${A}", known) == "1-2-3-$A-${A}"
    with pytest.raises(KeyError, match="EMPTY: say it"):
        interpolate("${EMPTY:?say it}", known)
    with pytest.raises(KeyError, match="C: is not set"):
        interpolate("${C}", known)


def test_a_lost_message_is_freed_by_airflow_and_one_that_waits_is_not() -> None:
    """A dead worker's message comes back from Redis after a day; 32 tasks wait for 4 at a time."""
    told = filled()["airflow-scheduler"]["environment"]
    queued = float(told["AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT"])
    visible = float(told["AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"])
    rounds = int(told["AIRFLOW__CORE__PARALLELISM"]) / int(
        told["AIRFLOW__CELERY__WORKER_CONCURRENCY"]
    )
    assert rounds * 200 < queued < visible / 10, "each round of tasks takes minutes"


def test_the_image_runs_as_nobody_of_note() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    user = re.search(r"^USER (\S+)$", final, re.MULTILINE)
    assert user is not None
    assert user[1] == declared()["airflow-scheduler"]["user"]
    assert image_variables()["DO_NOT_TRACK"] == "true"
    assert image_variables()["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_the_image_is_installed_from_the_lock_by_the_locked_uv() -> None:
    lock = (PROJECT / "requirements.lock").read_text()
    locked, used = re.search(r"^uv==(\S+)", lock, re.MULTILINE), re.search(r"UV=(\S+)", DOCKERFILE)
    assert locked is not None
    assert used is not None
    assert used[1] == locked[1], "Dockerfile: ARG UV"
    for word in ("--require-hashes", "--compile-bytecode", "--no-deps"):
        assert word in DOCKERFILE


def kept_for_the_image(folder: Path, needed: str, lock: str) -> subprocess.CompletedProcess[str]:
    """Run the Dockerfile's own filter of the lock; what it keeps is in ``runtime.lock``."""
    script = re.search(r"<<'PYTHON'\n(.*?)\nPYTHON\n", DOCKERFILE, re.DOTALL)
    assert script is not None
    (folder / "needed.txt").write_text(needed)
    (folder / "requirements.lock").write_text(lock)
    command = [sys.executable, "-c", script[1]]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def entries(lock: str) -> list[tuple[str, str]]:
    """Name and whole text of each entry, without what is only said about it."""
    text = re.sub(r"^ *#.*\n", "", lock, flags=re.MULTILINE)
    return [(e.split("==")[0], e.strip()) for e in re.split(r"\n(?=\S)", text) if e.strip()]


def test_the_image_keeps_every_entry_of_a_package_with_its_hashes(tmp_path: Path) -> None:
    whole = entries((PROJECT / "requirements.lock").read_text())
    names = [name for name, _ in whole]
    twice = {name for name in names if names.count(name) > 1}
    assert twice, "one version for Python 3.11, another for later ones"
    needed = twice | set(names[::2])
    done = kept_for_the_image(
        tmp_path, "".join(f"{name}==1 ; python_version < '4'\n" for name in sorted(needed)),
        (PROJECT / "requirements.lock").read_text(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kept = entries((tmp_path / "runtime.lock").read_text())
    assert kept == [(name, text) for name, text in whole if name in needed]
    assert all("--hash=sha256:" in text for _, text in kept)


def test_a_package_that_the_lock_lacks_ends_the_build(tmp_path: Path) -> None:
    done = kept_for_the_image(tmp_path, "here==1\ngone==2\n", "here==1 \\\n    --hash=sha256:0\n")
    assert done.returncode == 1
    assert "not in requirements.lock: ['gone']" in done.stderr


def test_the_image_gets_extras_that_exist() -> None:
    import tomllib

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = re.search(r'EXTRAS="([^"]+)"', DOCKERFILE)
    assert extras is not None
    chosen = set(extras[1].split())
    assert chosen <= set(project["optional-dependencies"])
    assert {"celery", "postgres", "redis"} <= chosen
    assert "dev" not in chosen


def test_only_what_the_image_needs_is_sent_to_be_built() -> None:
    lines = (PROJECT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert "**/.env" in rules
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE))
    wanted = {name for group in copied for name in group.split()}
    assert {f"!{name}" for name in wanted} == {rule for rule in rules if rule.startswith("!")}
