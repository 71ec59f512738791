"""Where a deployment keeps its things: home folder, ledger, store, MLflow. One object a stage needs.

Defaults are embedded: everything below ``EVERGREEN_HOME``, no service to start. Operators fill
it from Airflow Connections (see `evergreen.hooks.workspace`), the command line from the
environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from evergreen.declaration import Declaration
from evergreen.ledger import Ledger
from evergreen.store import Store

# Nothing calls out; and threads of OpenMP and OpenBLAS that spin while they wait would take busy
# cores from others.
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Workspace:
    """A deployment's places.

    :ivar home: local folder for what is rebuilt when lost, and for the embedded defaults.
    :ivar ledger: the record.
    :ivar store: the artifacts.
    :ivar tracking: finds ``tracking_uri`` when it is first asked for: many stages never do.
    :ivar feature_store: a ``feature_store.yaml`` of Feast's that says which registry, offline and
        online store are used; None for files below the home folder.
    """

    home: Path
    ledger: Ledger
    store: Store
    tracking: Callable[[], str] = field(repr=False, compare=False)
    feature_store: Path | None = None

    @classmethod
    def from_environment(
        cls,
        environment: Mapping[str, str] | None = None,
        *,
        ledger_url: str | None = None,
        store_uri: str | None = None,
        store_options: Mapping[str, Any] | None = None,
        tracking: Callable[[], str | None] = lambda: None,
    ) -> Workspace:
        """Read ``EVERGREEN_HOME``, ``EVERGREEN_LEDGER_URL``, ``EVERGREEN_STORE_URI``,
        ``EVERGREEN_FEATURE_STORE`` and ``MLFLOW_TRACKING_URI``; what isn't set lies below the home
        folder.

        The keyword arguments, when given, win over the environment.

        :param tracking: finds the address, or None for the environment's.
        """
        for key, value in QUIET.items():
            os.environ.setdefault(key, value)
        env = os.environ if environment is None else environment
        home = Path(env.get("EVERGREEN_HOME") or ".evergreen").expanduser().resolve()
        home.mkdir(parents=True, exist_ok=True)
        return cls(
            home=home,
            ledger=Ledger(
                ledger_url or env.get("EVERGREEN_LEDGER_URL") or f"sqlite:///{home}/ledger.db"
            ),
            store=Store(
                store_uri or env.get("EVERGREEN_STORE_URI") or f"file://{home}/store", store_options
            ),
            tracking=lambda: (
                tracking() or env.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home}/mlflow.db"
            ),
            feature_store=Path(features)
            if (features := env.get("EVERGREEN_FEATURE_STORE"))
            else None,
        )

    @cached_property
    def tracking_uri(self) -> str:
        """MLflow's tracking server or database, also its registry; may hold a password.

        :raises DeclarationError: when what says it can't be used.
        """
        return self.tracking()

    def landing_uri(self, uri: str) -> str:
        """A declared URI as it is meant: a relative one lies below the home folder."""
        return uri if "://" in uri or uri.startswith("/") else f"{self.home}/{uri}"

    def experiment(self, declaration: Declaration) -> str:
        """The MLflow experiment of a model."""
        return f"evergreen/{declaration.name}"
