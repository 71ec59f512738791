"""What Airflow reads about this provider before anything else. Imports nothing.

The form of a Connection is written here and not in its hook, so that Airflow shows it without
importing the hook.
"""

from __future__ import annotations

from typing import Any

_HOOKS = ("ledger", "serving", "store", "tracking", "workspace")


def get_provider_info() -> dict[str, Any]:
    """The provider's name and what it brings, in Airflow's own schema."""
    return {
        "package-name": "airflow-provider-evergreen",
        "name": "Evergreen",
        "description": "Continuous training: retrain when it is worth it, promote only on evidence.",
        "integrations": [{"integration-name": "Evergreen", "tags": ["software"]}],
        "operators": [{"integration-name": "Evergreen", "python-modules": ["evergreen.operators"]}],
        "hooks": [
            {
                "integration-name": "Evergreen",
                "python-modules": [f"evergreen.hooks.{name}" for name in _HOOKS],
            }
        ],
        "connection-types": [_LEDGER, _STORE, _MLFLOW, _SERVING],
    }


def _field(label: str, description: str, kind: str = "string", **schema: Any) -> dict[str, Any]:
    """A field of a form, kept in the Connection's extra; it may be left empty."""
    about = {"type": [kind, "null"], **schema}
    return {"label": label, "description": description, "schema": about}


_LEDGER = {
    "connection-type": "evergreen_ledger",
    "hook-class-name": "evergreen.hooks.ledger.LedgerHook",
    "hook-name": "Evergreen ledger",
    "ui-field-behaviour": {
        "hidden-fields": [],
        "relabeling": {"schema": "Database"},
        "placeholders": {"host": "postgres.example.com", "port": "5432", "schema": "evergreen"},
    },
    "conn-fields": {
        "dialect": _field(
            "Dialect",
            "How SQLAlchemy spells the database and its driver; postgresql when empty.",
            examples=["postgresql", "postgresql+psycopg2", "sqlite"],
        ),
        "sslmode": _field(
            "TLS mode",
            "How far PostgreSQL's TLS certificate is checked.",
            enum=["disable", "allow", "prefer", "require", "verify-ca", "verify-full", None],
        ),
        "sslrootcert": _field(
            "CA certificate", "File with the authorities trusted for verify-ca and verify-full."
        ),
    },
}
_STORE = {
    "connection-type": "evergreen_store",
    "hook-class-name": "evergreen.hooks.store.StoreHook",
    "hook-name": "Evergreen store",
    "ui-field-behaviour": {
        "hidden-fields": ["port", "schema", "login", "password"],
        "relabeling": {"host": "Root URI"},
        "placeholders": {"host": "s3://bucket/evergreen"},
    },
    "conn-fields": {
        "aws_conn_id": _field(
            "AWS Connection",
            "Connection whose credentials, region and endpoint open s3://; the environment's when "
            "empty.",
        )
    },
}
_MLFLOW = {
    "connection-type": "evergreen_mlflow",
    "hook-class-name": "evergreen.hooks.tracking.MlflowHook",
    "hook-name": "Evergreen MLflow",
    "ui-field-behaviour": {
        "hidden-fields": ["port", "schema"],
        "relabeling": {"host": "Address", "password": "Password or token"},
        "placeholders": {"host": "https://mlflow.example.com:5000", "login": "empty for a token"},
    },
    "conn-fields": {
        "verify_tls": _field(
            "Check the TLS certificate", "No only for a test's server.", "boolean", default=True
        ),
        "ca_certificate": _field(
            "CA certificate", "File with the authorities to trust; the system's when empty."
        ),
    },
}
_SERVING = {
    "connection-type": "evergreen_serving",
    "hook-class-name": "evergreen.hooks.serving.ServingHook",
    "hook-name": "Evergreen serving",
    "ui-field-behaviour": {
        "hidden-fields": ["port", "schema", "login"],
        "relabeling": {"host": "Replicas that Test asks", "password": "API key"},
        "placeholders": {"host": "http://replica-1:8080, http://replica-2:8080"},
    },
}
