"""Celery workers that start warm: the worker imports what tasks need, then forks its pool.

Airflow's Celery worker keeps a pool of processes forked from it (Celery's default, `prefork`), and
each of these forks its tasks; so what the worker has imported costs its tasks nothing. Select it
with `AIRFLOW__CELERY__CELERY_CONFIG_OPTIONS=evergreen.celery_workers.CONFIG`: Celery's
configuration is Airflow's own, but naming it here makes Airflow import this module, and that
connects `warm` to the signal by which a worker says that it starts. A scheduler, which imports
this module too, never sends it. Other pools (threads, gevent) inherit nothing but lose nothing.
"""

from __future__ import annotations

import gc
from typing import Any

from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG
from celery.signals import worker_init  # type: ignore[import-untyped]  # Celery ships no types

from evergreen.executors import PRELOAD, PRELOAD_SERVICES, warm_up

#: The very object: Airflow lays any other over a team's own configuration.
CONFIG = DEFAULT_CELERY_CONFIG


def warm(**_signal: Any) -> None:
    """Import the lifecycle and its vendors before the pool is forked.

    What remains is frozen, so that no child's garbage collection copies the pages it shares with
    the others; Airflow's own handler lifts that when the pool stands.
    """
    warm_up((*PRELOAD, *PRELOAD_SERVICES))
    gc.freeze()


worker_init.connect(warm)  # held weakly: `warm` lives as long as this module
