"""Which models this Airflow can run: those whose declared executors it has.

Airflow refuses a DAG with an executor it doesn't know, and then leaves out all DAGs of its file.
So such a model is left out here, and ``dags/declarations.py`` says why. Only Airflow's
configuration is read: no executor is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evergreen.declaration import Declaration, DeclarationError, declared_models


def check_executors(declaration: Declaration) -> None:
    """Refuse an executor that Airflow isn't configured with.

    :raises DeclarationError: naming the file, the stage, what was found and what there is.
    """
    wrong = [
        f"{declaration.folder / 'model.yaml'}: compute.{stage}.executor: found {place.executor!r}: "
        f"[core] executor of this Airflow has {', '.join(_configured())}. Declare one of these, or "
        "add it there."
        for stage, place in declaration.compute.items()
        if place.executor is not None and not _known(place.executor)
    ]
    if wrong:
        raise DeclarationError("\n".join(wrong))


def placed_models(models: Path, dag_id: str | None = None) -> Iterator[Declaration]:
    """Yield as `evergreen.declaration.declared_models`, models with unknown executors apart.

    :param models: the folder with one folder a model.
    :param dag_id: a DAG id ``<model>.<family>``; the others' files aren't read then.
    :raises DeclarationError: once the others are yielded, for all that can't be used.
    """
    problems = []
    every = declared_models(models, dag_id)
    while True:
        try:
            declaration = next(every, None)
            if declaration is None:
                break
            check_executors(declaration)
        except DeclarationError as error:
            problems.append(str(error))
        else:
            yield declaration
    if problems:
        raise DeclarationError("\n".join(problems))


def runnable_models(models: Path, dag_id: str | None = None) -> Iterator[Declaration]:
    """Yield as `placed_models`, but only report a problem to the one model whose DAG is run.

    :raises DeclarationError: for the one model whose DAG is being run.
    """
    try:
        yield from placed_models(models, dag_id)
    except DeclarationError:
        if dag_id is not None:
            raise


def _known(executor: str) -> bool:
    """Asked as Airflow asks when it has parsed a DAG."""
    from airflow.exceptions import UnknownExecutorException
    from airflow.executors.executor_loader import ExecutorLoader

    try:
        ExecutorLoader.lookup_executor_name_by_str(executor, validate_teams=False)
    except UnknownExecutorException:
        return False
    return True


def _configured() -> list[str]:
    from airflow.executors.executor_loader import ExecutorLoader

    names = ExecutorLoader.get_executor_names(validate_teams=False)
    return [name.alias or name.module_path for name in names]
