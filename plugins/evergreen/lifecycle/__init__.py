"""The stages of a model's life as pure functions: no Airflow, no clock, no hidden state.

Every stage takes a `Declaration` and a `Workspace` and returns a contract. Vendors are imported
inside functions, so that importing a stage costs nothing while DAGs are parsed.
"""
