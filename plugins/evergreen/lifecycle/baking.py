"""Bake: watch a version that went live until it is verified, or is to be sent back.

By requests, where replicas are declared: smoke requests at once, then errors, latency and the
distribution of answers for a while of wall time. By labels: on matured rows that it answered in
production it may not be surely worse than the former champion. What is remembered from look to
look stands in the ledger (`evergreen.lifecycle.bakestate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from evergreen.declaration import Declaration
from evergreen.declaration.types import format_duration
from evergreen.errors import UnavailableError
from evergreen.ledger import records
from evergreen.lifecycle import servers
from evergreen.lifecycle.answering_rules import (
    Watch,
    distribution_rule,
    distribution_unknown,
    errors_rule,
    latency_rule,
    silent_rule,
    smoke_rule,
)
from evergreen.lifecycle.asking import KEY
from evergreen.lifecycle.bakestate import DISPROVED, GOOD, Bake, begin, record
from evergreen.lifecycle.contracts import BakeReport, Rule
from evergreen.lifecycle.reanswering import (
    MOST,
    Compared,
    compare,
    example_rows,
    find_matured,
    holdout_pair,
    logged_pair,
)
from evergreen.lifecycle.replicacounts import Counters
from evergreen.workspace import Workspace

PATIENCE = 3  # times the watch, for replicas that can't be reached or are hardly asked
LOOKS = (1, 2, 4)  # times bake.rows: the numbers of matured rows at which labels are looked at
WATCHING = "watching"


def look_at_requests(
    declaration: Declaration, workspace: Workspace, *, now: datetime, as_of: datetime | None = None
) -> BakeReport:
    """One look at how the replicas answer with the live version.

    The first one sends smoke requests and notes when the watch began, and what was counted until
    then. The following compare with that, until ``bake.watch`` has passed. A replica that can't
    be reached is not the version's fault: the others are watched meanwhile, three times as long
    at most, and it is sent its smoke requests as soon as it is there. One that serves the version
    and doesn't answer them is asked again at each look; until the watch is over they must be
    answered.

    :param now: wall time.
    :param as_of: only noted in the report.
    :returns: ``baking`` while another look is due, then ``over``: ``verified`` when labels have
        proven it too, ``baking`` when they haven't yet, or when there were too few requests;
        ``roll_back`` when it is disproved, which a repeat says again, and later looks as long as
        there is a verified version to go back to; without one they say ``nothing``.
    :raises UnavailableError: when no replica can be looked at first, or one can't be reached for
        three times the watch.
    """
    bake = begin(declaration, workspace, "requests", as_of)
    if isinstance(bake, BakeReport):
        return bake
    if not declaration.serving.replicas:
        return bake.report("nothing", "no replica is declared: there are no answers to look at")
    if WATCHING not in bake.events:
        return _first_look(bake, now)
    return _next_look(bake, now)


def look_at_labels(
    declaration: Declaration, workspace: Workspace, *, as_of: datetime | None = None
) -> BakeReport:
    """One look at what was learned of the live version's answers in production.

    Looking again and again until a difference shows would find one by chance. So it is looked at
    three times at most, when there are ``bake.rows`` matured rows, twice and four times as many;
    each look is noted and not repeated, and its interval has the confidence at which all three
    together err as rarely as one at the gate's (Bonferroni). Surely worse than the bound is
    disproved, surely not worse is proven, at the first look that says so; at the last one not
    surely worse is enough.

    :param as_of: labels known later don't count; the data watermark when None.
    """
    with workspace.ledger.read() as session:
        moment = as_of or records.watermark(session, declaration.name)
    bake = begin(declaration, workspace, "labels", moment)
    if isinstance(bake, BakeReport):
        return bake
    holdout = bake.holdout()
    if holdout is None or moment is None:
        why = "it was promoted before what a version was judged by was kept"
        return bake.report("nothing", f"version {bake.live.version} can't be judged: {why}")
    classes = holdout.evaluation.classes
    matured = find_matured(declaration, workspace, bake.live, classes, moment)
    rows, steps = len(matured.labels), _steps(declaration)
    reached = [step for step in steps if step <= rows]
    if not reached:
        return bake.report("baking", f"{rows:,} of {steps[0]:,} matured rows", rows=rows)
    look = f"looked:{reached[-1]}"
    if (before := bake.events.get(look)) is not None:
        needed = next(step for step in steps if step > reached[-1])
        told = f"{rows:,} of {needed:,} matured rows; {before['reason']}"
        return bake.report("baking", told, rows=rows)
    confidence = 1 - (1 - declaration.gate.confidence) / len(LOOKS)
    found = compare(declaration, workspace, matured, holdout, bake.former, confidence)
    return _judged(bake, found, rows, look, last=reached[-1] == steps[-1])


def _judged(bake: Bake, found: Compared, rows: int, look: str, *, last: bool) -> BakeReport:
    """What a comparison says, and that it was made."""
    metric, better = bake.declaration.primary.name, found.better
    if better is None:
        return bake.report("baking", f"{rows:,} matured rows don't define {metric}", rows=rows)
    bound = -bake.declaration.bake.tolerance * abs(found.value)
    told = (
        f"{metric} improves on {found.against} by {better.value:+.4f} ({found.confidence:.1%} "
        f"interval {better.low:+.4f} to {better.high:+.4f}) on {rows:,} matured rows"
    )
    worse = better.high < bound
    rule = Rule(
        name="improvement in production",
        observed=told,
        bound=f"not surely below {bound:+.4f}",
        passed=not worse,
    )
    facts: dict[str, Any] = {"rules": (rule,), "rows": rows, "difference": better.value}
    facts["interval"] = (better.low, better.high)
    reason = f"{told}, bound {bound:+.4f}" + (f"; {found.note}" if found.note else "")
    if worse:
        return record(bake, bake.report("roll_back", reason, **facts), DISPROVED)
    if last or better.low > bound:
        return record(bake, bake.report("baking", reason, **facts), GOOD["labels"])
    return record(bake, bake.report("baking", f"not sure yet: {reason}", **facts), look)


def _steps(declaration: Declaration) -> list[int]:
    """The numbers of matured rows to look at; no more than are ever read."""
    return sorted({min(declaration.bake.rows * times, MOST) for times in LOOKS})


# requests


@dataclass(frozen=True)
class _Smoked:
    """What became of smoke requests.

    :ivar silent: replicas that serve the version and didn't answer in time, and how.
    """

    rules: list[Rule]
    silent: dict[str, str]


def _first_look(bake: Bake, now: datetime) -> BakeReport:
    """Smoke requests, and from where on it is counted."""
    declaration, version = bake.declaration, bake.live.version
    refused, absent = _replicas(bake)
    if refused:
        return _sent_back(bake, refused)
    there = [each for each in declaration.serving.replicas if each not in absent]
    smoked = _smoke(bake, there, absent)
    if not all(rule.passed for rule in smoked.rules):
        return _sent_back(bake, smoked.rules)
    counted, problems = servers.counted(declaration, version)
    absent = {**problems, **absent}
    if set(declaration.serving.replicas) <= set(absent):
        _all_there(bake, absent)
    unanswered = {**absent, **smoked.silent}
    told = f"smoke requests are well; watched for {format_duration(declaration.bake.watch)}"
    told += "".join(f"; not yet: {each}" for each in _named(unanswered))
    kept = {address: each.to_dict() for address, each in counted.items()}
    note = {"since": now.isoformat(), "counters": kept, "unanswered": sorted(unanswered)}
    return record(bake, bake.report("baking", told, rules=tuple(smoked.rules)), WATCHING, note)


def _smoke(bake: Bake, addresses: Sequence[str], absent: dict[str, str]) -> _Smoked:
    """Send smoke requests to replicas that serve the version; note in ``absent`` whose answer
    says nothing of it."""
    smoked = _Smoked([], {})
    if not addresses:
        return smoked
    declaration, version = bake.declaration, bake.live.version
    model, rows = example_rows(declaration, bake.workspace, bake.live)
    expected = model.predict(rows)
    for found in servers.smoke(declaration, rows, version, addresses=addresses):
        rule = smoke_rule(found, declaration.task, version, expected)
        if isinstance(rule, Rule):
            smoked.rules.append(rule)
        else:
            (smoked.silent if found.late else absent)[found.address] = rule
    return smoked


def _next_look(bake: Bake, now: datetime) -> BakeReport:
    """What was counted since the watch began, beside the bounds."""
    declaration, watch = bake.declaration, Watch.of(bake.declaration)
    watching = bake.events[WATCHING]
    since = datetime.fromisoformat(watching["since"])
    passed, length = now - since, declaration.bake.watch
    refused, absent = _replicas(bake)
    if refused:
        return _sent_back(bake, refused)
    counted, problems = _counted(bake)
    absent = {**problems, **absent}
    owing = set(watching.get("unanswered", ())) - set(absent)
    smoked = _smoke(bake, [a for a in declaration.serving.replicas if a in owing], absent)
    enough, late = counted.requests >= watch.requests, passed >= length * PATIENCE
    over = passed >= length
    done = over and enough and not absent
    final = done or late
    silent = [silent_rule(a, why, _text(passed)) for a, why in smoked.silent.items() if over]
    rules = [
        errors_rule(counted, watch, final=final),
        _latency(bake, counted, watch, final=final),
        *smoked.rules,
        *silent,
    ]
    if not all(rule.passed for rule in rules):
        return _sent_back(bake, rules)
    if absent and late:
        _all_there(bake, absent, f" for {_text(passed)}")
    told = (
        f"{_text(passed)} of {format_duration(length)}, {counted.requests:,.0f} requests "
        f"({watch.requests:,} needed)"
        + "".join(f"; {each}" for each in _named({**absent, **smoked.silent}))
    )
    if done:
        rules.append(_distribution(bake, since, watch))
        if not rules[-1].passed:
            return _sent_back(bake, rules)
    elif late:
        told += "; too few to judge by: it stays unverified until a later bake finds enough"
    report = bake.report("baking", told, rules=tuple(rules), rows=int(counted.rows), over=late)
    return record(bake, report, GOOD["requests"] if done else None)


def _replicas(bake: Bake) -> tuple[list[Rule], dict[str, str]]:
    """A failed rule for each replica that refuses the version; what others do that don't serve
    it, by address."""
    version = bake.live.version
    refused, absent = [], {}
    for state in servers.states(bake.declaration):
        if (why := state.refuses(version)) is not None:
            name = f"served by {state.address}"
            refused.append(Rule(name=name, observed=f"refused: {why}", bound="yes", passed=False))
        elif state.version != version:
            absent[state.address] = state.told()
    return refused, absent


def _counted(bake: Bake) -> tuple[Counters, dict[str, str]]:
    """What was counted since the watch began; and of whom it isn't known, why."""
    before = bake.events[WATCHING]["counters"]
    found, problems = servers.counted(bake.declaration, bake.live.version)
    total = Counters()
    for address, now in found.items():
        then = Counters.of(before[address]) if address in before else Counters()
        total += now.since(then)
    return total, problems


def _latency(bake: Bake, counted: Counters, watch: Watch, *, final: bool) -> Rule:
    """The rule; what the former champion took is only asked where it may change it."""
    rule = latency_rule(counted, watch, final=final)
    if rule.passed or watch.declared or bake.former is None:
        return rule
    found, _ = servers.counted(bake.declaration, bake.former.version)
    former = sum(found.values(), Counters())
    return latency_rule(counted, watch, final=final, former=former)


def _all_there(bake: Bake, absent: dict[str, str], how_long: str = "") -> None:
    if absent:
        raise UnavailableError(
            f"{bake.declaration.name}: version {bake.live.version} can't be looked at{how_long}: "
            f"{'; '.join(_named(absent))}. Check those replicas, {KEY} and serving.replicas; the "
            "task is retried."
        )


def _named(absent: dict[str, str]) -> list[str]:
    return [
        why if why.startswith(address) else f"{address} {why}" for address, why in absent.items()
    ]


def _distribution(bake: Bake, since: datetime, watch: Watch) -> Rule:
    if bake.former is None:
        return distribution_unknown("there is no former champion", watch)
    holdout = bake.holdout()
    if holdout is None:
        return distribution_unknown("the ledger doesn't say what it was judged by", watch)
    given = (bake.declaration, bake.workspace)
    live = logged_pair(*given, bake.live, bake.former, holdout, since)
    if isinstance(live, str):
        return distribution_unknown(live, watch)
    return distribution_rule(live, holdout_pair(*given, bake.former, holdout), watch)


def _sent_back(bake: Bake, rules: list[Rule]) -> BakeReport:
    failed = [rule for rule in rules if not rule.passed]
    reason = "; ".join(f"{r.name}: {r.observed}, allowed {r.bound}" for r in failed)
    return record(bake, bake.report("roll_back", reason, rules=tuple(rules)), DISPROVED)


def _text(span: timedelta) -> str:
    return format_duration(timedelta(seconds=max(0, int(span.total_seconds()))))
