"""The pages inside Airflow's own UI: which models are healthy, what is live and why, what to do."""
