"""A server that ends with whoever drills it: its process, seen from outside and from inside.

From outside it is started beside production, on a free port of loopback. From inside it is
``evergreen serve`` and a look at standard input: a drill that is killed can't end its server any
more, but the kernel closes the pipe then, and that ends it. So none stays behind, following an
alias that nobody moves.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import evergreen
from evergreen.declaration import Declaration
from evergreen.errors import ServingError
from evergreen.workspace import Workspace

PAUSE = 0.05  # seconds between two looks: what a drill measures can't be finer
#: Seconds that the server gets to end by itself.
GRACE = 5.0
_LISTENS = re.compile(r"evergreen serves .* on (https?://\S+)")


@dataclass(frozen=True)
class DrillServer:
    """A running server.

    :ivar declaration: the model's, with this server as its only replica.
    """

    declaration: Declaration
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Do nothing while it runs.

        :raises ServingError: with its last words, when it has ended.
        """
        if (code := self.process.poll()) is not None:
            raise ServingError(f"the drill's server ended with {code}: {_last_lines(self.log)}")


@contextmanager
def drill_server(
    declaration: Declaration, workspace: Workspace, alias: str, deadline: float
) -> Iterator[DrillServer]:
    """A server that follows ``alias``, for the length of a block.

    :param deadline: by the monotonic clock; it must listen by then.
    :raises ServingError: when it ends first, or doesn't listen in time.
    """
    with tempfile.TemporaryDirectory(prefix="evergreen-drill-") as home:
        log = Path(home) / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
                _command(declaration, alias),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(workspace, home),
            )
        try:
            address = _address(process, log, deadline)
            serving = declaration.serving.model_copy(update={"replicas": (address,)})
            alone = declaration.model_copy(update={"serving": serving})
            yield DrillServer(alone, process, log)
        finally:
            _end(process)


def _command(declaration: Declaration, alias: str) -> list[str]:
    return [
        *(sys.executable, "-m", "evergreen.lifecycle.drill_server", "serve", declaration.name),
        *("--models", str(declaration.folder.resolve().parent)),
        *("--host", "127.0.0.1", "--port", "0", "--alias", alias, "--every", "0.2"),
    ]


def _environment(workspace: Workspace, home: str) -> dict[str, str]:
    """The registry is the real one; what a server writes goes to a folder of the drill's own.

    The store too: a server ships its prediction log there, and what a drill asks is no answer
    that production gave.
    """
    package = str(Path(evergreen.__file__).parents[1])
    before, tracking = os.environ.get("PYTHONPATH"), workspace.tracking_uri
    return {
        **os.environ,  # with what MLflow is asked with, now that its address is known
        "EVERGREEN_HOME": home,
        "EVERGREEN_STORE_URI": f"file://{home}/store",
        "EVERGREEN_LEDGER_URL": workspace.ledger.url.render_as_string(hide_password=False),
        "MLFLOW_TRACKING_URI": tracking,
        "PYTHONPATH": os.pathsep.join([package, *([before] if before else [])]),
        "PYTHONUNBUFFERED": "1",
    }


def _address(process: subprocess.Popen[bytes], log: Path, deadline: float) -> str:
    """Where the server listens, once it says so."""
    while process.poll() is None and time.monotonic() < deadline:
        if (found := _LISTENS.search(log.read_text(errors="replace"))) is not None:
            return found[1]
        time.sleep(PAUSE)  # between looks, until the deadline
    code = process.poll()
    ended = "hangs" if code is None else f"ended with {code}"
    raise ServingError(f"the drill's server {ended} before it listened: {_last_lines(log)}")


def _last_lines(log: Path) -> str:
    """What it said last, however it was wrapped."""
    return " ".join(log.read_text(errors="replace").split()[-60:]) or "it said nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server by its id; by force when it takes longer than it may."""
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(2 * GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(GRACE)


def _end_with_parent() -> None:
    """Wait until the pipe closes; then end this process, at last without asking it."""
    while os.read(0, 4096):  # not by sys.stdin: a thread in it aborts an interpreter that ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)  # the server's own end comes first, and this thread ends with it
    os._exit(1)


if __name__ == "__main__":
    Thread(target=_end_with_parent, daemon=True).start()
    runpy.run_module("evergreen.cli", run_name="__main__", alter_sys=True)
