"""Evergreen keeps machine-learning models fresh on Apache Airflow.

Columns are layers (`lifecycle`, `operators`), rows are lifecycle stages: a stage has the same
file name in every layer. Import nothing heavy here: Airflow imports this package early.
"""

__version__ = "0.1.0"
