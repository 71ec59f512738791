"""What a new version's answers to requests must be like: smoke, errors, latency, distribution.

While it is watched a version fails a rule only when that is sure. Looks are many, and each is a
chance to be wrong, so each is given its share of the error that the gate's confidence leaves
(Bonferroni). Once the watch is over, the plain number counts; of errors only when there were so
many requests that a lone failure stays within its bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration, Task
from evergreen.lifecycle.categoryprofiles import psi
from evergreen.lifecycle.contracts import Rule

if TYPE_CHECKING:
    import numpy as np

    from evergreen.lifecycle.replicacounts import Counters
    from evergreen.lifecycle.servers import Smoke

    Array = np.ndarray[Any, np.dtype[Any]]

FEWEST = 200  # logged answers to compare distributions by
BINS = 10
SLOW = 0.05  # the share of requests that a 95th percentile leaves above it
EQUAL = 1e-6  # relative
SLOWER = 1.5  # times the former champion's p95 on the same replicas
NOT_ITS_DOING = frozenset({401, 403, 404, 429, 502, 503, 504})
"""Answers that say something of the replica, its key or its load, not of the version.

With 504 too, which counts against it while it is watched: a lone request to a process that has
just loaded a version may be late for any reason, and there it is asked again; see `silent_rule`.
"""


@dataclass(frozen=True)
class Watch:
    """The bounds, and how sure one look must be.

    :ivar latency: seconds.
    :ivar declared: whether that is a bound on answers to requests. Else it is the gate's, on the
        model alone, and a version is also well that is hardly slower than the former champion.
    :ivar confidence: two-sided, of one look of as many as are planned.
    """

    errors: float
    latency: float
    distribution: float
    requests: int
    confidence: float
    declared: bool = True

    @property
    def plainly(self) -> int:
        """From how many requests on the plain share of failures may count: of fewer, a lone
        failure is more than ``errors``."""
        return math.ceil(1 / self.errors) if self.errors else 1

    @classmethod
    def of(cls, declaration: Declaration) -> Watch:
        """As a model declares them."""
        bake, gate = declaration.bake, declaration.gate
        looks = max(1, math.ceil(bake.watch / bake.every)) if bake.every else 1
        return cls(
            errors=bake.errors,
            latency=(bake.latency_p95_ms or gate.latency_p95_ms) / 1000,
            distribution=bake.distribution,
            requests=bake.requests,
            confidence=1 - (1 - gate.confidence) / looks,
            declared=bake.latency_p95_ms is not None,
        )


def surely_above(count: float, total: float, bound: float, confidence: float) -> bool:
    """Whether a share lies above ``bound`` by the lower end of its exact interval.

    Exact (C. J. Clopper and E. S. Pearson, Biometrika 26, 1934) because bounds are near 0 and
    counts small, where the lower end of Wilson's interval is far too high: it would call one
    failure in ten requests surely more than 1 %, which chance does once in ten times.
    """
    from scipy.stats import beta

    if count <= 0:
        return False
    return bool(beta.ppf((1 - confidence) / 2, count, total - count + 1) > bound)


def smoke_rule(found: Smoke, task: Task, version: str, expected: Array) -> Rule | str:
    """One replica's answer to example rows beside the version's answers here.

    :param expected: as in `evergreen.lifecycle.metrics`.
    :returns: the rule; or why the replica's answer says nothing of the version.
    """
    if found.status is None or found.status in NOT_ITS_DOING:
        return f"{found.address} {found.problem}"
    if found.version is not None and found.version != version:
        return f"{found.address} answers with version {found.version}"
    wrong = found.problem or _differs(found, task, expected)
    return Rule(
        name=f"smoke requests at {found.address}",
        observed=wrong or f"{len(expected)} rows alike in {found.seconds * 1000:.0f} ms",
        bound=f"what it answers here, to {EQUAL:g}",
        passed=not wrong,
    )


def silent_rule(address: str, why: str, asked_for: str) -> Rule:
    """A replica that serves the version, and got no answer out of it however often it was asked."""
    return Rule(
        name=f"smoke requests at {address}",
        observed=f"{why.removeprefix(address).strip()}, asked again and again for {asked_for}",
        bound="an answer",
        passed=False,
    )


def errors_rule(counted: Counters, watch: Watch, *, final: bool) -> Rule:
    """The share of requests that failed of those that were the version's to answer.

    The plain share counts only at the end, and from `Watch.plainly` requests on: one failure in a
    quiet hour is no proof, however long it was waited for.
    """
    share = counted.failed / counted.requests if counted.requests else 0.0
    plain = final and counted.requests >= watch.plainly
    bad = (
        share > watch.errors
        if plain
        else surely_above(counted.failed, counted.requests, watch.errors, watch.confidence)
    )
    return Rule(
        name="errors",
        observed=f"{counted.failed:,.0f} of {counted.requests:,.0f} requests ({share:.2%})",
        bound=f"{'at most' if plain else 'not surely above'} {watch.errors:.2%}",
        passed=not bad,
    )


def latency_rule(
    counted: Counters, watch: Watch, *, final: bool, former: Counters | None = None
) -> Rule:
    """The 95th percentile: above its bound as long as more than 5 % of requests took longer.

    :param former: what the same replicas counted of the former champion. Where no bound on
        requests is declared, `SLOWER` times its p95 is allowed too, if enough were timed.
    """
    allowed, bound = watch.latency, _ms(watch.latency)
    theirs = former.p95() if former and former.timed >= watch.requests else None
    if theirs is not None and not watch.declared:
        allowed = max(allowed, SLOWER * theirs)
        bound += f", or {SLOWER:g} times the former champion's p95 here ({_ms(theirs)})"
    slow = counted.slower(allowed)
    p95 = counted.p95()
    bad = (
        p95 is not None and p95 > allowed
        if final
        else surely_above(slow, counted.timed, SLOW, watch.confidence)
    )
    few = counted.timed < watch.requests
    shown = "nothing was timed" if p95 is None else f"{_ms(p95)} of {counted.timed:,.0f} requests"
    return Rule(
        name="latency p95",
        observed=f"{shown}{f', {watch.requests:,} needed' if few else ''}",
        bound=f"{'at most' if final else 'not surely above'} {bound}",
        passed=few or not bad,
    )


def distribution_rule(
    live: tuple[Array, Array], holdout: tuple[Array, Array] | None, watch: Watch
) -> Rule:
    """How much further the new version's answers are from the former champion's than they were
    when the gate let it through.

    :param live: both models' answers to the same logged requests, the new version's first.
    :param holdout: both models' answers to the holdout; None when nobody knows them.
    """
    rows = len(live[0])
    if rows < FEWEST:
        return distribution_unknown(f"{rows:,} logged answers, {FEWEST:,} needed", watch)
    now = distances(*live)
    then = distances(*holdout) if holdout is not None else [0.0] * len(now)
    worst = max(range(len(now)), key=lambda k: now[k] - then[k])
    grown = now[worst] - then[worst]
    return Rule(
        name="distribution",
        observed=(
            f"PSI {now[worst]:.3f} from the former champion on {rows:,} requests, "
            f"{then[worst]:.3f} on the holdout: {grown:+.3f}"
        ),
        bound=f"at most {watch.distribution:+g}",
        passed=grown <= watch.distribution,
    )


def distribution_unknown(why: str, watch: Watch) -> Rule:
    """The rule where there is nothing to compare: it passes, and says why."""
    bound = f"at most {watch.distribution:+g}"
    return Rule(name="distribution", observed=f"not judged: {why}", bound=bound, passed=True)


def distances(new: Array, old: Array) -> list[float]:
    """The population stability index of ``new`` from ``old``, of each class for several.

    Over bins of equally many of the old answers; see `evergreen.lifecycle.categoryprofiles.psi`.
    """
    pairs = [(new, old)] if new.ndim == 1 else list(zip(new.T, old.T, strict=True))
    return [_psi(*pair) for pair in pairs]


def _psi(new: Array, old: Array) -> float:
    import numpy as np

    edges = np.unique(np.quantile(old, np.linspace(0, 1, BINS + 1)[1:-1]))
    shares = [
        np.bincount(np.searchsorted(edges, each, side="right"), minlength=len(edges) + 1)
        / len(each)
        for each in (old, new)
    ]
    there = (shares[0] > 0) | (shares[1] > 0)
    return psi(shares[0][there], shares[1][there])


def _differs(found: Smoke, task: Task, expected: Array) -> str | None:
    """How a replica's answers differ from those here; None when they don't."""
    import numpy as np

    try:
        values = np.asarray(found.answers, dtype="float64")
    except (ValueError, TypeError) as error:
        return f"it answers what are no numbers: {error}"
    if task is Task.BINARY and values.ndim == 2 and values.shape[1] == 2:
        values = values[:, 1]
    if values.shape != expected.shape:
        return f"it answers in the shape {values.shape}, {expected.shape} is expected"
    if not np.isfinite(values).all():
        return "it answers NaN or infinity"
    off = np.abs(values - expected)
    if (off > EQUAL * np.maximum(np.abs(expected), EQUAL)).any():
        return f"it answers otherwise than here, by up to {off.max():.3g}"
    return None


def _ms(seconds: float) -> str:
    return "beyond the last bucket" if math.isinf(seconds) else f"{seconds * 1000:.1f} ms"
