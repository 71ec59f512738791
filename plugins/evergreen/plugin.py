"""Evergreen as an Airflow plugin, registered by the entry point ``airflow.plugins``."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin


class EvergreenPlugin(AirflowPlugin):
    """Evergreen's place in Airflow."""

    name = "evergreen"
