"""``evergreen …``: check declarations, read the ledger, replay history, retrain, serve, roll back.

Reading commands take ``--json``. Where things are kept comes from the environment: see
`evergreen.workspace`. Errors end with status 1 and say what to do.
"""

from __future__ import annotations

from rich.console import Console

from evergreen.cli import reading, running, serving
from evergreen.cli.common import app
from evergreen.errors import EvergreenError

__all__ = ["app", "main", "reading", "running", "serving"]
app.info.help = __doc__


def main() -> None:
    """The console script: one line of error, not a stack trace, for what Evergreen raises."""
    from evergreen.airflow_client import AirflowError
    from evergreen.standalone import StandaloneError

    try:
        app()
    except (EvergreenError, AirflowError, StandaloneError) as error:
        Console(stderr=True).print(
            f"[bold red]{type(error).__name__}[/]", str(error), sep="\n", highlight=False
        )
        raise SystemExit(1) from None
