"""Import every DAG file as Airflow does, and fail by name for those that can't be: a commit hook.

``python tests/dags/integrity.py [FOLDER]``. Airflow ends each file's import after 30 s.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def main(folder: Path) -> int:
    """Print what is wrong, or how many DAGs there are; the exit code."""
    with tempfile.TemporaryDirectory(prefix="evergreen-dags-") as home:
        # Before Airflow is imported: it reads its settings once, and writes into its home.
        os.environ |= {
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "30",
        }
        from airflow.dag_processing.dagbag import DagBag

        bag = DagBag(folder, bundle_path=folder, bundle_name="dags-folder")
    for file, problem in sorted(bag.import_errors.items()):
        sys.stderr.write(f"{file}:\n{problem}\n")
    if not bag.import_errors and not bag.dags:
        sys.stderr.write(f"{folder}: there is no DAG\n")
    sys.stdout.write(f"{len(bag.dags)} DAGs, {len(bag.import_errors)} files can't be imported\n")
    return 1 if bag.import_errors or not bag.dags else 0


if __name__ == "__main__":
    default = Path(__file__).parents[2] / "dags"
    sys.exit(main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else default))
