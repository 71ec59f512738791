"""One replica: everything put together, run until it is told to stop, and taken down in order.

It stops as it should: takes no more, answers what is under way, closes the prediction log and
ships what it can in the time that is left. What it can't ship waits on this disk for the next
process, as after a kill.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from time import time

import uvicorn

from evergreen.declaration import Declaration
from evergreen.serving.answering import Answerer
from evergreen.serving.app import Model, Replica, create_app
from evergreen.serving.batching import Batches
from evergreen.serving.connections import BoundedProtocol
from evergreen.serving.metrics import Metrics
from evergreen.serving.online import OnlineFeatures
from evergreen.serving.security import API_KEY, check_exposure
from evergreen.serving.spool import Shipper, Spool
from evergreen.serving.versions import Versions
from evergreen.workspace import Workspace

_log = logging.getLogger(__name__)
#: Seconds for what is under way at the end, and for shipping the prediction log.
GRACE, SHIPPING = 30, 10.0
_KEEP_ALIVE = 75  # longer than load balancers keep a connection, so that they close it first
_BACKLOG = 2048
Clock = Callable[[], datetime]


def _now() -> datetime:
    return datetime.fromtimestamp(time(), UTC)


def serve(
    declarations: Sequence[Declaration],
    workspace: Workspace,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    replica: str | None = None,
    every: float = 1.0,
    alias: str = "champion",
    log_level: str = "info",
    clock: Clock = _now,
) -> None:
    """Answer requests for models until SIGTERM or SIGINT.

    Prints ``evergreen serves MODEL... on http://HOST:PORT`` when it does. The API key comes from
    the environment, see `evergreen.serving.security`.

    :param port: 0 for any that is free.
    :param replica: this process's name, in the log and in ``/version``; the machine's and the
        process's number when left out.
    :param every: seconds between looks at the registry.
    :param alias: what the registry calls the version that answers.
    :raises ExposureError: when other machines would be answered without a key.
    :raises OSError: when the address can't be had.
    """
    name = replica or f"{socket.gethostname()}-{os.getpid()}"
    check_exposure(host)
    with _listening(host, port) as listener:
        running = Running.start(
            declarations, workspace, name=name, every=every, alias=alias, clock=clock
        )
        try:
            gc.collect()
            gc.freeze()  # what is loaded stays: looking through it again would hold up answers
            models = " ".join(declaration.name for declaration in declarations)
            bound = listener.getsockname()
            shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
            config = uvicorn.Config(
                create_app(running.replica),
                loop="uvloop",
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                access_log=False,
                log_level=log_level,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=GRACE,
            )
            ready = f"evergreen serves {models} on http://{shown}:{bound[1]}"
            _Server(config, ready).run(sockets=[listener])
        finally:
            running.stop()


@dataclass(frozen=True)
class Running:
    """A replica's parts at work.

    :ivar spools: the prediction logs, one a model.
    """

    replica: Replica
    spools: Sequence[Spool]

    @classmethod
    def start(
        cls,
        declarations: Sequence[Declaration],
        workspace: Workspace,
        *,
        name: str,
        every: float = 1.0,
        alias: str = "champion",
        key: str | None = None,
        clock: Clock = _now,
    ) -> Running:
        """Load versions, open online stores and logs, begin to answer.

        :param key: the API key; from the environment when left out.
        """
        metrics = Metrics()
        parts = [
            _model(declaration, workspace, metrics, name, every, alias, clock)
            for declaration in declarations
        ]
        models, spools = [model for model, _ in parts], [spool for _, spool in parts]
        secret = key or os.environ.get(API_KEY) or None
        return cls(Replica(name, clock(), models, metrics, secret), spools)

    def stop(self) -> None:
        """Answer what waits, close the logs, ship them; at most some `SHIPPING` seconds a model."""
        for model, spool in zip(self.replica.models, self.spools, strict=True):
            if not model.answerer.stop():
                _log.warning("%s: some requests were not answered in time", model.name)
            model.versions.stop()
            model.online.close()
            spool.close()
            if not model.shipper.flush(SHIPPING):
                _log.warning(
                    "%s: %d log segments wait in %s for the next process: %s",
                    model.name,
                    model.shipper.waiting(),
                    spool.folder,
                    model.shipper.problem,
                )
            model.shipper.stop()


def _model(
    declaration: Declaration,
    workspace: Workspace,
    metrics: Metrics,
    replica: str,
    every: float,
    alias: str,
    clock: Clock,
) -> tuple[Model, Spool]:
    """One model's parts, started."""
    versions = Versions(declaration, workspace, alias=alias, every=every)
    online = OnlineFeatures(declaration, workspace, clock=clock)
    folder = workspace.home / "serving" / declaration.name / "spool"
    spool = Spool(folder, replica=replica)
    shipper = Shipper(folder, workspace.store, declaration.name, spool=spool)
    batches = Batches(
        declaration,
        versions,
        online,
        spool,
        metrics.of(declaration.name),
        replica=replica,
        clock=clock,
    )
    answerer = Answerer(declaration.name, batches)
    versions.start()
    shipper.start()
    answerer.start()
    return Model(declaration, versions, online, answerer, shipper), spool


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket, before anything slow is done: a port that is taken is told at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise OSError(
                error.errno, f"{host}:{port} can't be listened on: {error.strerror}"
            ) from error
        yield listener


class _Server(uvicorn.Server):
    """Says when it is ready, and leaves after a signal as after any other end.

    Uvicorn's own would raise the signal again once it has stopped, and end the process before
    the prediction log is closed.
    """

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; then the line for whoever started this process."""
        await super().startup(sockets)
        print(self._ready, flush=True)  # noqa: T201 - the command's output, read by its parent

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals stop the server for the length of a block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
