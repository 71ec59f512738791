"""Airflow as it is set up for these tests, and as it was before: it keeps its app, its engine and its
auth manager by process."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.scenarios.project import Project
from tests.unit.ui.keeper import USERS

BUNDLE = "pages"
MAIN = "airflow.api_fastapi.main"


@contextmanager
def deployed(project: Project) -> Iterator[None]:
    """Airflow's settings, database and app are those of these tests; afterwards as they were."""
    from airflow import settings

    bundle = {
        "name": BUNDLE,
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(project.folder / "dags")},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AIRFLOW__API__SECRET_KEY": "signs forms",
            "AIRFLOW__API_AUTH__JWT_SECRET": "signs tokens " * 8,
            "AIRFLOW__CORE__AUTH_MANAGER": "tests.unit.ui.keeper.Keeper",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": f"{project.folder}/passwords.json",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(map(":".join, USERS.items())),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{project.folder}/airflow.db",
            "EVERGREEN_HOME": str(project.home),
            "_AIRFLOW_PROCESS_CONTEXT": "server",
        }.items():
            patch.setenv(name, value)
        settings.configure_vars()
        settings.reconfigure_orm()
        _forget()
        yield
    _forget()
    settings.configure_vars()
    settings.reconfigure_orm()


def _forget() -> None:
    """What Airflow keeps by process; its app is the attribute of a module, too."""
    from airflow.api_fastapi.app import purge_cached_app

    purge_cached_app()
    sys.modules.pop(MAIN, None)


def fill(project: Project) -> None:
    """Migrate the metadata database and read the DAG files into it, as the DAG processor does."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.utils import db

    db.initdb()
    DagBundlesManager().sync_bundles_to_db()
    folder = project.folder / "dags"
    bag = DagBag(folder, bundle_path=folder, bundle_name=BUNDLE)
    assert not bag.import_errors
    sync_bag_to_db(bag, BUNDLE, None)
