"""Sensors: what Airflow waits for before a stage may have something to do."""
