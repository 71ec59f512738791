"""A model in a registry, and replicas that follow it; shared by the files that look at both."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from evergreen.declaration import Declaration, Task
from evergreen.lifecycle import registry, tracking
from evergreen.lifecycle.contracts import Feature
from evergreen.lifecycle.fitted import FittedModel
from evergreen.lifecycle.packaging import package
from evergreen.serving.versions import Versions
from evergreen.workspace import Workspace
from tests.builders import declare, workspace_in

ROWS = pd.DataFrame({"wind": [0.0, 1.0, 2.0], "gust": [5.0, 1.0, 3.0]})
FEATURES = (Feature(name="wind", type="number"), Feature(name="gust", type="number"))
SOON = 0.02
_names = count()
_logged: dict[tuple[float, str | None], tuple[str, str]] = {}
"""What was logged once for all tests: by answer, and by model where it is a test's own."""


@pytest.fixture(scope="session")  # as long as `_logged` knows what is in it
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One registry for all tests; each has a model of its own name, and replicas' own homes."""
    return workspace_in(tmp_path_factory.mktemp("deployment"))


class Life:
    """A model in the registry, and the replicas that a test starts."""

    def __init__(self, deployment: Workspace, folder: Path) -> None:
        folder.mkdir()
        self.declaration: Declaration = declare(
            folder,
            name=f"model_{next(_names)}",
            task="regression",
            evaluation={"primary": "mean_absolute_error"},
        )
        self.registry, self.workspace = deployment, replace(deployment, home=folder)
        self.started: list[Versions] = []

    @property
    def name(self) -> str:
        return self.declaration.name

    @property
    def kept(self) -> Path:
        return self.workspace.home / "serving" / self.name / "versions"

    def register(
        self, answer: float, *, estimator: Any = None, examples: bool = True, own: bool = False
    ) -> str:
        """A version that answers every row with ``answer``.

        :param own: whether its files are no other test's, so that they may be broken.
        """
        made = (answer, self.name if own or estimator or not examples else None)
        if made not in _logged:
            _logged[made] = self.log(answer, estimator, examples=examples)
        return registry.register_version(self.registry, self.declaration, *_logged[made], {})

    def log(self, answer: float, estimator: Any, *, examples: bool) -> tuple[str, str]:
        """A logged model: its run and URI."""
        made = estimator or LinearRegression().fit(ROWS, [answer] * len(ROWS))
        fitted = FittedModel(made, Task.REGRESSION, FEATURES)
        key = f"{self.name}/{answer}"
        run = tracking.find_or_create_run(self.registry, self.declaration, key, {})
        packed = package(self.declaration, fitted, ROWS if examples else None)
        return run, registry.log_model(self.registry, run, "model", made, tags={}, **packed)

    def point(self, number: str | None, alias: str = "champion") -> None:
        if number is None:
            registry.delete_alias(self.registry, self.name, alias)
        else:
            registry.set_alias(self.registry, self.name, alias, number)

    def artifact(self, number: str) -> Path:
        """The file of a version in the store."""
        found = tracking.client(self.registry).get_model_version(self.name, number)
        logged = tracking.client(self.registry).get_logged_model(found.source.split("/")[-1])
        return Path(logged.artifact_location.removeprefix("file://")) / "model.skops"

    def replica(self, tracking_uri: str | None = None) -> Versions:
        workspace = self.workspace
        if tracking_uri is not None:
            workspace = replace(workspace, tracking=lambda: tracking_uri)
        self.started.append(Versions(self.declaration, workspace, every=SOON))
        return self.started[-1]


@pytest.fixture
def life(deployment: Workspace, tmp_path: Path) -> Iterator[Life]:
    made = Life(deployment, tmp_path / "replica")
    yield made
    for versions in made.started:
        versions.stop()


def bring_back(life: Life, file: Path) -> None:
    """The registry as ``file``, whole at once: of half a database MLflow makes a new one."""
    aside = file.with_suffix(".aside")
    shutil.copy(life.registry.home / "mlflow.db", aside)
    aside.replace(file)


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it didn't come"
        time.sleep(0.01)  # between looks, until the end: threads of a replica's own bring it about


def answer(versions: Versions) -> float:
    assert versions.champion
    return float(versions.champion.fitted.predict(ROWS)[0])


def flip(file: Path) -> bytes:
    """Change one byte of a file; returns what it held."""
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    return content
