"""What Airflow reads about this provider before anything else. Imports nothing."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """The provider's name and what it brings, in Airflow's own schema."""
    return {
        "package-name": "airflow-provider-evergreen",
        "name": "Evergreen",
        "description": "Continuous training: retrain when it is worth it, promote only on evidence.",
        "integrations": [{"integration-name": "Evergreen", "tags": ["software"]}],
        "operators": [{"integration-name": "Evergreen", "python-modules": ["evergreen.operators"]}],
        "hooks": [
            {"integration-name": "Evergreen", "python-modules": ["evergreen.hooks.workspace"]}
        ],
    }
