"""No DAG: this file's import error in Airflow's UI is what is wrong with broken model files.

It is apart from the DAG files because an import error takes all DAGs of its file with it.
"""

from pathlib import Path

from evergreen.placing import placed_models

MODELS = Path(__file__).parents[1] / "include" / "models"

for _model in placed_models(MODELS):
    pass
