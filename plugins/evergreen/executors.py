"""Executors whose workers start warm.

A task that imports MLflow, Great Expectations, Feast and scikit-learn pays up to twenty seconds
for it, in every task anew. Airflow forks each task from a LocalExecutor worker and each worker
from the scheduler, so a module that the scheduler has imported costs its tasks nothing. Celery's
workers do the same by `evergreen.celery_workers`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pkgutil
import warnings
from collections.abc import Iterable, Iterator
from importlib import import_module
from time import perf_counter

from airflow.executors.local_executor import LocalExecutor

log = logging.getLogger(__name__)

#: What Airflow imports in each task, and the lifecycle inside its functions, down to the modules
#: that the vendors themselves import late; `make bench` names what is lacking. Only imports belong here: threads (OpenMP, DuckDB, gRPC) that start
#: before a fork hang the processes forked after it.
PRELOAD = (
    "skops.io",  # first: it looks for each of SciPy's functions in every module that is there
    "airflow.dag_processing.bundles.local",
    "airflow.sdk.execution_time.cache",
    "airflow.sdk.execution_time.supervisor",
    "airflow.providers.standard.operators.empty",
    "evergreen.operators.approval",
    "evergreen.operators.escalation",
    "jinja2.ext",
    "pandas",
    "pandas.core.arrays.arrow.extension_types",
    "pandas.core.methods.to_dict",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "upath.implementations.local",
    "sqlalchemy",
    "alembic.command",
    "duckdb",
    "ibis.backends.duckdb.converter",
    "ibis.formats.pandas",
    "sklearn.compose",
    "sklearn.ensemble",
    "sklearn.inspection",
    "sklearn.linear_model",
    "sklearn.metrics",
    "sklearn.model_selection",
    "sklearn.pipeline",
    "narwhals._interchange.dataframe",
    "narwhals._pandas_like.namespace",
    "narwhals.stable.v2._namespace",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PpmImagePlugin",
    "git",
    "mlflow",
    "mlflow.pyfunc",
    "mlflow.sklearn",
    "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "mlflow.store.tracking.file_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "mlflow.tracing.processor.base_mlflow",
    "mlflow.tracing.processor.otel",
    "mlflow.utils.search_logged_model_utils",
    "great_expectations",
    "feast",
    "feast.infra.compute_engines.local.compute",
    "feast.infra.offline_stores.duckdb",
    "feast.infra.online_stores.dynamodb",  # Feast imports each online store that it can
    "feast.infra.online_stores.redis",
    "feast.infra.online_stores.sqlite",
    "feast.infra.passthrough_provider",
    "feast.infra.registry.file",
    "feast.repo_operations",
    "evidently",
    "evidently.presets",
    "plotly.offline",
    "river.drift.binary",
)

#: What tasks import beside that where the ledger, the store and MLflow are services.
PRELOAD_SERVICES = (
    "boto3.session",
    "feast.infra.registry.sql",
    "mlflow.store.artifact.mlflow_artifacts_repo",
    "mlflow.store.model_registry.rest_store",
    "mlflow.store.tracking.rest_store",
    "mlflow.tracking.request_header.registry",  # loads what others have registered, Feast's too
    "psycopg2",
    "s3fs",
    "upath.implementations.cloud",
)

#: No vendor phones home, and no plot looks for a display.
DEFAULTS = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "MPLBACKEND": "Agg"}


def lifecycle_modules() -> Iterator[str]:
    """Name the modules of `evergreen.lifecycle`; none when the package can't be found."""
    try:
        package = import_module("evergreen.lifecycle")
    except ModuleNotFoundError:
        return
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield module.name


def preload(modules: Iterable[str]) -> dict[str, str]:
    """Import `modules` and return those that would not load, each with its reason.

    A module that fails is left to the task that needs it, whose log is where its error belongs:
    a scheduler must start without an optional vendor.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    # Once Airflow has configured logging, importing GX prints hundreds of registration lines.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    skipped = {}
    with warnings.catch_warnings():
        # The same search asks Airflow's modules for names that they take for their own old ones.
        warnings.filterwarnings("ignore", "The `airflow")
        for name in modules:
            try:
                _import(name)
            except Exception as error:  # noqa: BLE001 (a vendor may fail at import in any way)
                skipped[name] = f"{type(error).__name__}: {error}"
                log.warning("Not preloaded: %s (%s)", name, skipped[name])
    return skipped


def _import(name: str) -> None:
    """Import a module; Feast the quick way."""
    if name == "feast":
        from evergreen.lifecycle.feast_import import import_feast

        import_feast()
    else:
        import_module(name)


def warm_up(modules: Iterable[str]) -> None:
    """Import `modules` and the lifecycle, in a process that forks the workers afterwards."""
    began = perf_counter()
    # OpenMP reads it once, when it is loaded here: threads of the tasks side by side that spin
    # while they wait take each other's cores, and a fit more than twice the CPU time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads spin, whatever is set
    names = [*modules, *lifecycle_modules()]
    gc.disable()  # imports leave no garbage: looking for it takes a sixth of their time
    try:
        skipped = preload(names)
        _read_distributions()
        _compile_templates()
        if "s3fs" in names:
            _read_s3()
    finally:
        gc.enable()
    _start_forks()
    # Freed garbage would leave holes in pages that parent and child share.
    gc.collect()
    loaded, seconds = len(names) - len(skipped), perf_counter() - began
    log.info("Preloaded %d of %d modules in %.1f s", loaded, len(names), seconds)


def _start_forks() -> None:
    """Let the infrastructure check's clean processes be forked too."""
    try:
        from evergreen.lifecycle.infrastructure_process import start
    except ImportError:
        return  # said by `preload`
    start()


def _read_distributions() -> None:
    """Let MLflow read what is installed, which it asks for whenever a model is saved."""
    try:
        from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches
    except ImportError:
        return  # said by `preload`; saving a model in a task says it again
    warn_dependency_requirement_mismatches(["mlflow"])


def _compile_templates() -> None:
    """Let the pages of a validation find their templates compiled."""
    try:
        from evergreen.lifecycle.expectations import compile_templates

        compile_templates()
    except ImportError:
        return  # said by `preload`


def _read_s3() -> None:
    """Let S3's description be read: a client is made, which asks nobody."""
    try:
        from botocore.exceptions import BotoCoreError

        from evergreen.store import s3_session

        session = s3_session()
    except ImportError:
        return  # said by `preload`

    async def make() -> None:
        nobody = {"aws_access_key_id": "-", "aws_secret_access_key": "-"}
        async with session.create_client("s3", region_name="us-east-1", **nobody):
            pass

    try:
        asyncio.run(make())
    except BotoCoreError as error:  # the environment's, like a profile that isn't there
        log.warning("S3's description isn't read ahead (%s)", error)


class WarmLocalExecutor(LocalExecutor):
    """Airflow's LocalExecutor, forked from a scheduler that has imported what tasks need.

    Select it with `AIRFLOW__CORE__EXECUTOR=evergreen.executors.WarmLocalExecutor`. Workers that
    replace dead ones are forked from the same scheduler and are as warm. Where Python does not
    fork (`mp_start_method = spawn`, macOS) nothing is inherited, so nothing is preloaded.
    """

    def start(self) -> None:
        """Import the lifecycle and its vendors, then fork the workers."""
        if self.is_mp_using_fork:
            warm_up(PRELOAD)  # LocalExecutor itself freezes what remains while it forks
        super().start()
