"""Ask replicas: which version they serve, how they answer, and what they have counted.

Every declared replica is asked for itself: what one of them says holds for no other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import ServingError, UnavailableError
from evergreen.lifecycle.asking import Reply, ask
from evergreen.lifecycle.replicacounts import Counters, parse

if TYPE_CHECKING:
    import pandas as pd

VERSION_HEADER = "X-Evergreen-Version"
SMOKE = "evergreen-smoke"
"""What the ids of smoke requests begin with: in the prediction log they are nobody's."""
LATE = 504  # what a replica answers when a version takes too long
PAUSE = 0.25  # seconds between two looks while waiting


@dataclass(frozen=True)
class ReplicaState:
    """What a replica says of a model, or why it says nothing.

    :ivar version: what it answers with; ``wanted`` what the registry asks it for.
    :ivar refused: version → why the replica doesn't serve it.
    :ivar problem: why it can't be asked; everything else is empty then.
    """

    address: str
    version: str | None = None
    wanted: str | None = None
    candidate: str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    registry_problem: str | None = None
    problem: str | None = None

    def refuses(self, version: str) -> str | None:
        """Why the replica refuses a version that it is asked for; None when it doesn't.

        What it refused once and isn't asked for any more is no refusal of today.
        """
        return self.refused.get(version) if self.wanted == version != self.version else None

    def told(self) -> str:
        """The replica in a few words."""
        if self.problem is not None:
            return f"{self.address} {self.problem}"
        wanted = f", wants {self.wanted}" if self.wanted != self.version else ""
        unreachable = f" ({self.registry_problem})" if self.registry_problem else ""
        return f"{self.address} serves {self.version or 'no version'}{wanted}{unreachable}"


@dataclass(frozen=True)
class Smoke:
    """A replica's answer to example rows.

    :ivar version: who answered, by the header.
    :ivar answers: ``predictions`` as they came.
    :ivar seconds: from asking to having it all.
    :ivar problem: why there is no answer that can be read, or what the replica said against it.
    :ivar late: whether it took too long, by our patience or the replica's own.
    """

    address: str
    status: int | None = None
    version: str | None = None
    answers: tuple[Any, ...] = ()
    seconds: float = 0.0
    problem: str | None = None
    late: bool = False


def states(declaration: Declaration, *, timeout: float = 5.0) -> list[ReplicaState]:
    """What each declared replica says of the model, in the order of declaration.

    :param timeout: seconds that one replica may take in all.
    """
    replies = ask(declaration.serving.replicas, "GET", "/version", timeout=timeout)
    return [_state(declaration.name, reply) for reply in replies]


def wait_until_served(
    declaration: Declaration,
    version: str,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Wait until every declared replica reports ``version``, for at most ``serving.within``.

    :returns: what happened, in a sentence for the log.
    :raises ServingError: when a replica refuses the version.
    :raises UnavailableError: when time is over; says what each of the others reports.
    """
    if not declaration.serving.replicas:
        return "no server is declared; nothing to wait for"
    began, patience = clock(), declaration.serving.within.total_seconds()
    while True:
        found = states(declaration, timeout=max(0.5, min(5.0, patience - (clock() - began))))
        for state in found:
            if (why := state.refuses(version)) is not None:
                raise ServingError(
                    f"{declaration.name}: {state.address} refuses version {version}: {why}. It "
                    f"goes on serving {state.version or 'no version'}."
                )
        late = [state for state in found if state.version != version]
        waited = clock() - began
        if not late:
            count = "1 replica serves" if len(found) == 1 else f"{len(found)} replicas serve"
            return f"{count} version {version} after {waited:.1f} s"
        if waited >= patience:
            raise UnavailableError(
                f"{declaration.name}: version {version} is not served everywhere after "
                f"{waited:.0f} s (serving.within: {patience:.0f} s): "
                f"{'; '.join(state.told() for state in late)}. Check those replicas, that they "
                "reach the registry, and serving.replicas; the task is retried."
            )
        sleep(min(PAUSE, patience - waited))


def smoke(
    declaration: Declaration,
    rows: pd.DataFrame,
    version: str,
    *,
    addresses: Sequence[str] | None = None,
    timeout: float = 10.0,
) -> list[Smoke]:
    """Ask each declared replica to answer example rows, as a client would.

    :param rows: the version's features, shape (n, …).
    :param version: only for the requests' ids.
    :param addresses: only these replicas.
    :param timeout: seconds that one replica may take in all.
    """
    from evergreen.store import digest_of

    asked = {"dataframe_split": {"columns": [*map(str, rows.columns)], "data": _plain_rows(rows)}}
    name = f"{SMOKE}-{version}-{digest_of(asked)[:12]}"
    replies = ask(
        declaration.serving.replicas if addresses is None else addresses,
        "POST",
        f"/models/{declaration.name}/invocations",
        content=json.dumps(asked, allow_nan=False).encode(),
        headers={"Content-Type": "application/json", "X-Request-Id": name},
        timeout=timeout,
    )
    return [_smoke(reply) for reply in replies]


def counters(declaration: Declaration, version: str, *, timeout: float = 5.0) -> Counters:
    """What all replicas counted of a version together.

    :raises UnavailableError: when a replica can't be asked.
    """
    found, problems = counted(declaration, version, timeout=timeout)
    if problems:
        raise UnavailableError(
            f"{declaration.name}: {'; '.join(f'{a} {why}' for a, why in problems.items())}. "
            "Check that replica and serving.replicas; the task is retried."
        )
    return sum(found.values(), Counters())


def counted(
    declaration: Declaration, version: str, *, timeout: float = 5.0
) -> tuple[dict[str, Counters], dict[str, str]]:
    """What each replica counted of a version as champion, by address; and why others didn't say."""
    found, problems = {}, {}
    for reply in ask(declaration.serving.replicas, "GET", "/metrics", timeout=timeout):
        problem = reply.refusal()
        if problem is None:
            try:
                found[reply.address] = parse(reply.text, declaration.name, version)
                continue
            except ValueError as error:
                problem = f"answers /metrics with what isn't Prometheus' text format: {error}"
        problems[reply.address] = problem
    return found, problems


def _state(model: str, reply: Reply) -> ReplicaState:
    problem = reply.refusal()
    if problem is None:
        try:
            return _reported(model, reply)
        except (ValueError, TypeError, AttributeError) as error:
            problem = f"answers /version with what no evergreen replica says: {error}"
    return ReplicaState(reply.address, problem=problem)


def _reported(model: str, reply: Reply) -> ReplicaState:
    models = reply.document().get("models")
    if not isinstance(models, dict):
        raise TypeError("there is no object `models`")
    if model not in models:
        served = ", ".join(models) or "nothing"
        return ReplicaState(reply.address, problem=f"doesn't serve {model}, but {served}")
    said = models[model]
    version, wanted, candidate = (_text(said.get(k)) for k in ("version", "wanted", "candidate"))
    return ReplicaState(
        address=reply.address,
        version=version,
        wanted=wanted,
        candidate=candidate,
        refused={str(v): str(why) for v, why in (said.get("refused") or {}).items()},
        registry_problem=_text(said.get("registry_problem")),
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _smoke(reply: Reply) -> Smoke:
    problem, answers = reply.refusal(), ()
    if problem is None:
        try:
            answers = tuple(reply.document()["predictions"])
        except (ValueError, TypeError, KeyError) as error:
            problem = f"answers 200 without a list of predictions: {error}"
    version = reply.headers.get(VERSION_HEADER.lower())
    late = reply.late or reply.status == LATE
    return Smoke(reply.address, reply.status, version, answers, reply.seconds, problem, late)


def _plain_rows(rows: pd.DataFrame) -> list[list[Any]]:
    """Rows as JSON has them: what is missing is null."""
    import pandas as pd

    return [
        [None if pd.isna(value) else value for value in row]
        for row in rows.astype(object).itertuples(index=False, name=None)
    ]
