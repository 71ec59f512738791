"""Airflow's simple auth manager, and a model that only admins may see: it has no rights by DAG."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

SECRET = "secret"
MODELS = ("example", "other", SECRET)
USERS = {"admin": "admin", "ann": "user", "vera": "viewer"}  # name → role


class Keeper(SimpleAuthManager):
    """Who isn't an admin may not read the DAG by which `SECRET` is seen; others of its DAGs may be
    read, like in a deployment that shares scores."""

    def is_authorized_dag(self, **asked: Any) -> bool:
        details, user = asked.get("details"), asked["user"]
        if details and details.id == f"{SECRET}.retrain" and user.role != "admin":
            return False
        return super().is_authorized_dag(**asked)
