"""The section on monitoring, as far as Evergreen sees it."""

from __future__ import annotations

from collections.abc import Mapping

from evergreen.rubric.known import LATELY, Compared, Judged, Known
from evergreen.rubric.people import declare

_ALARMS = {"refused", "failed"}
_REGULAR = 2  # verdicts that measured the same are a habit


def dependency_changes(known: Known) -> Judged:
    """Data whose columns changed is refused, and somebody hears of it: half of what may change."""
    told = any(_ALARMS & set(channel.on) for channel in known.declaration.escalation.notify)
    if not told:
        return Judged(
            0.0,
            "nobody is told when changed data is refused",
            "declare `escalation.notify` with `refused` and `failed` among its events",
        )
    if not known.passed("data usable"):
        return Judged(
            0.0,
            "somebody would be told; no live version's data was checked yet",
            f"let a version go live: `evergreen retrain {known.declaration.name}`",
        )
    return Judged(
        0.5,
        "each run compares columns with those learned; refusals are notified. Changes of other "
        "dependencies aren't seen",
        "follow the announcements of data owners and libraries, and let data owners know that you "
        f"depend on them; then {declare('dependency_changes')}",
    )


def data_invariants(known: Known) -> Judged:
    """Expectations and drift over what is scored."""
    if isinstance(known.suite, str):
        return Judged(
            0.0, known.suite, "mend the file of `validation.suite`: run `evergreen check`"
        )
    watched = known.drift is not None and known.lately(known.drift.as_of)
    checked = known.passed("data usable")
    if watched and checked and known.suite and known.drift is not None:
        return Judged(
            1.0,
            f"{known.suite} expectations on each partition; drift judged in {known.drift.window}",
        )
    if not (watched or checked):
        return Judged(
            0.0,
            "no data of a live version was checked",
            f"let a version go live and {known.declaration.name}.monitor judge a window",
        )
    if not known.suite:
        return Judged(
            0.5,
            "structure and drift only: no expectation is declared",
            "declare `validation.suite`",
        )
    name = known.declaration.name
    lacking = (
        "data was checked, but drift was not judged lately"
        if checked
        else "drift was judged, but no live version's verdict says that its data was checked"
    )
    return Judged(0.5, lacking, f"let `{name}.monitor` and `{name}.retrain` run on schedule")


def not_skewed(known: Known) -> Judged:
    """Features as served beside offline; for a model without replicas, answers logged and anew."""
    if known.skew is not None:
        return _served(known, known.skew)
    if known.declaration.serving.replicas:
        return Judged(
            0.0,
            "replicas are declared; nothing served was compared yet",
            f"let `{known.declaration.name}.monitor` compare at least "
            f"{known.declaration.serving.skew.min_rows} answers (`serving.skew.min_rows`)",
        )
    if known.alike is None:
        return Judged(
            0.0,
            "no answer given in production was compared with the same version's anew",
            f"let a champion score partitions, then retrain: `evergreen retrain "
            f"{known.declaration.name}`",
        )
    if known.alike.startswith("NO"):
        return Judged(
            0.0,
            f"answers in production and anew: {known.alike}",
            "find out which features differ: compare the scored partition's with the training set's",
            failing=True,
        )
    return Judged(1.0, f"answers in production are those given anew: {known.alike}")


def _served(known: Known, skew: Compared) -> Judged:
    if skew.violates:
        return Judged(
            0.0,
            f"in {skew.partition} these differ too often: {', '.join(skew.violates)}",
            "make the feature's online and offline code one, or put its data online sooner",
            failing=True,
        )
    told = f"no feature differs in {skew.partition}, of {skew.rows:,} answers"
    if known.lately(skew.as_of):
        return Judged(1.0, told)
    return Judged(
        0.5, f"{told}; that is long ago", f"let `{known.declaration.name}.monitor` compare again"
    )


def not_stale(known: Known) -> Judged:
    """Something asks for a retrain before a version is too old, and is heard."""
    name, triggers = known.declaration.name, known.declaration.triggers
    asking = [
        cause
        for cause in ("schedule", "new_data", "performance", "drift")
        if getattr(triggers, cause) is not None
    ]
    if known.live is None or not asking:
        lacking = "no trigger is declared" if not asking else "no version is live"
        todo = "declare `triggers`" if not asking else f"start `evergreen retrain {name}`"
        return Judged(0.0, lacking, todo)
    told = (
        f"learned from data to {known.live.trained_through:%Y-%m-%d}; {', '.join(asking)} retrain"
    )
    if known.stopped is not None:
        return Judged(
            0.5,
            f"{told}, but automatic retraining has stopped: {known.stopped}",
            f"find out why, then `evergreen acknowledge {name} --comment ...`",
        )
    if known.paused is not None:
        return Judged(
            0.5,
            f"{told}, but automatic retraining is paused by {known.paused}",
            f"once what it was paused for is over: `evergreen resume {name} --reason ...`",
        )
    if known.lately(known.decided) and known.lately(known.live.trained_through):
        return Judged(1.0, told)
    return Judged(
        0.5,
        f"{told}, but the last decision, or what was learned from, is over {LATELY.days} days old",
        f"see why nothing asked: `evergreen status {name}`; or declare `triggers.schedule`",
    )


def numerically_stable(known: Known) -> Judged:
    """Finite answers before a version goes live, and finite figures after."""
    if not known.passed("candidate answers"):
        return Judged(
            0.0,
            "no live version's answers were checked to be finite",
            f"let a version go live: `evergreen retrain {known.declaration.name}`",
        )
    seen = known.quality
    if seen is not None and seen.basis == "realised" and known.lately(seen.as_of):
        return Judged(
            1.0, f"every holdout answer finite, and all that were judged in {seen.window}"
        )
    return Judged(
        0.5,
        "every holdout answer was finite; answers in production were not judged lately",
        f"let `{known.declaration.name}.monitor` judge a window",
    )


def computing_performance(known: Known) -> Judged:
    """Latency and memory of each version, and of answers to real requests where there are any."""
    name = known.declaration.name
    if not known.passed("latency p95", "peak memory"):
        return Judged(
            0.0,
            "latency and memory of no live version were measured",
            f"let a version go live: `evergreen retrain {name}`",
        )
    told = (
        f"latency and memory are within bounds, measured in {known.probed} of the newest verdicts"
    )
    watched = any("watched" in events for events in known.looks.values())
    if known.declaration.serving.replicas and not watched:
        return Judged(
            0.5, f"{told}; on no replica yet", f"let `{name}.bake` watch a version's requests"
        )
    if known.probed >= _REGULAR:
        return Judged(1.0, told)
    return Judged(0.5, told, f"let a second version be measured: `evergreen retrain {name}`")


def prediction_quality(known: Known) -> Judged:
    """Realised performance in production, against what the version was promoted with."""
    seen, name = known.quality, known.declaration.name
    again = f"let `{name}.monitor` judge a window with enough labels"
    if seen is None or known.live is None:
        return Judged(0.0, "no window in production was judged", again)
    worse, own = "performance" in seen.violates, seen.version == known.live.version
    if worse and own:
        return Judged(
            0.0,
            f"version {seen.version} is too bad in {seen.window}",
            f"retrain or go back: `evergreen retrain {name}`, `evergreen rollback {name}`",
            failing=True,
        )
    told = f"version {seen.version} in {seen.window}: {', '.join(_figures(seen.realised))}"
    if seen.basis != "realised":
        return Judged(0.5, f"version {seen.version} in {seen.window}: by its estimate only", again)
    if worse or not known.lately(seen.as_of):
        return Judged(0.5, f"{told}; not of the live version, or long ago", again)
    return Judged(1.0, f"{told}; not beyond its bound")


def _figures(values: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4f}" for name, value in values.items()]


TESTS = {
    "dependency_changes": dependency_changes,
    "data_invariants": data_invariants,
    "not_skewed": not_skewed,
    "not_stale": not_stale,
    "numerically_stable": numerically_stable,
    "computing_performance": computing_performance,
    "prediction_quality": prediction_quality,
}
