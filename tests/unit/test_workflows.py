"""CI's files: valid by GitHub's schema, pinned, with the least rights; and the commit hooks run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CI = (ROOT / ".ci" / "run").read_text()
#: What a job may be allowed beyond reading, and why it needs that.
ALLOWED = {
    ("release.yml", "pypi"): {"id-token": "write"},
    ("release.yml", "image"): {"contents": "read", "packages": "write"},
}


def read(file: Path) -> dict[str, Any]:
    """A workflow; YAML takes its key ``on`` for a truth value."""
    content: dict[Any, Any] = yaml.safe_load(file.read_text())
    return {"on" if key is True else key: value for key, value in content.items()}


def jobs() -> list[Any]:
    found = [(file, name, job) for file in WORKFLOWS for name, job in read(file)["jobs"].items()]
    return [pytest.param(file, name, job, id=f"{file.stem}-{name}") for file, name, job in found]


def test_they_are_valid_by_githubs_schema() -> None:
    schema = ["--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS)]
    command = [sys.executable, "-m", "check_jsonschema", *schema]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_nothing_is_allowed_that_is_not_needed(file: Path) -> None:
    workflow = read(file)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"].endswith("${{ github.ref }}")
    assert "pull_request_target" not in workflow["on"], "strangers' code with our rights"
    secrets = set(re.findall(r"secrets\.(\w+)", file.read_text()))
    assert secrets <= {"GITHUB_TOKEN"}


@pytest.mark.parametrize(("file", "name", "job"), jobs())
def test_jobs_are_bounded_and_pinned(file: Path, name: str, job: dict[str, Any]) -> None:
    assert job["timeout-minutes"] <= 90
    assert job.get("permissions", {}) == ALLOWED.get((file.name, name), {})
    for step in job["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", step["uses"]), step["uses"]
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False
        # What others may name, a branch or a title, must not become part of a command.
        assert "github." not in step.get("run", "")


def commands(job: dict[str, Any]) -> list[str]:
    said = [step.get("run", "").replace("\\\n", "") for step in job["steps"]]
    return [line for text in said for line in text.splitlines()]


@pytest.mark.parametrize("broken", ["setup", "check", "test", None])
def test_what_fails_fails_ci(tmp_path: Path, broken: str | None) -> None:
    """Also the checks, which run beside the tests; what they said is shown."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("make", "apt-get"):
        (programs / name).write_text(f'#!/bin/sh\necho "it ran $1"\n[ "$1" != "{broken}" ]\n')
        (programs / name).chmod(0o755)
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_text(CI)
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", ".ci/run"], cwd=tmp_path, env={**os.environ, "PATH": path, "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) is (broken is None), done.stdout + done.stderr
    assert broken == "setup" or {"it ran check", "it ran test"} <= {*done.stdout.splitlines()}
    assert not list(tmp_path.glob("tmp.*"))


def test_they_run_what_is_run_at_home_on_every_python_that_is_declared() -> None:
    ci = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    said = [line for job in ci.values() for line in commands(job)]
    run = {word[1] for line in said if (word := shlex.split(line))[:1] == ["make"]}
    assert run <= set(targets)
    assert {"check", "test"} <= {*re.findall(r"^make (\w+)\b", CI, re.MULTILINE)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {c.rpartition(" ")[2] for c in project["classifiers"] if "Python :: 3." in c}
    tested = {*ci["units"]["strategy"]["matrix"]["python"]}
    tested |= {re.findall(r"python:([\d.]+)-", ci["test"]["container"]["image"])[0]}
    assert tested == declared


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_all_tests_run_and_none_may_be_skipped(file: Path) -> None:
    """As `.ci/run` says; it installs with Debian's names, as the one who may."""
    job = read(file)["jobs"]["test"]
    assert commands(job)[-1] == ".ci/run"
    assert job["container"]["image"].endswith("-bookworm")
    assert "export EVERGREEN_TEST_SKIPS=fail" in CI


def test_the_unit_tests_find_what_they_need_on_every_python() -> None:
    units = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["units"]
    assert units["env"] == {"EVERGREEN_TEST_SKIPS": "fail"}
    (installed,) = (line for line in commands(units) if "postgresql" in line)
    packages = {word for word in installed.split()[2:] if not word.startswith("-")}
    assert packages == {*re.findall(r"\[([a-z-]+)\]=", CI)}


def test_what_is_locked_is_looked_up_among_known_holes() -> None:
    audit = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["audit"]
    command = shlex.split(commands(audit)[-1])
    assert command[0] == ".venv/bin/pip-audit"
    assert "--strict" in command, "without it passes what could not be looked up"
    offline = [sys.executable, "-m", "pip_audit", *command[1:], "--dry-run"]
    done = subprocess.run(
        offline, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    audited = re.search(r"would have audited (\d+) packages", done.stderr)
    assert audited is not None
    assert int(audited[1]) > 300


def test_a_release_needs_the_tests() -> None:
    release = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    before: dict[str, Any] = {name: job.get("needs") for name, job in release.items()}
    assert before == {"test": None, "build": "test", "pypi": "build", "image": "build"}


def hooks() -> dict[str, str]:
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    return {hook["id"]: hook["entry"] for repo in content["repos"] for hook in repo["hooks"]}


@pytest.mark.parametrize(("broken", "code"), [(False, 0), (True, 1)])
def test_the_hook_finds_dag_files_that_cant_be_imported(
    tmp_path: Path, broken: bool, code: int
) -> None:
    _, script = shlex.split(hooks()["dags"])
    whole = "from airflow.sdk import DAG\nwith DAG('whole', schedule=None): pass\n"
    (tmp_path / "whole.py").write_text(whole)
    if broken:
        (tmp_path / "broken.py").write_text(f"{whole}\nimport what_is_not_there\n")
    command = [sys.executable, str(ROOT / script), str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    if broken:
        assert "broken.py" in done.stderr
        assert "what_is_not_there" in done.stderr
        assert "1 DAGs, 1 files can't be imported" in done.stdout


def test_a_folder_without_a_dag_is_no_success(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "dags" / "integrity.py"), str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "there is no DAG" in done.stderr
