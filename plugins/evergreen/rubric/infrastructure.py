"""The section on infrastructure, as far as Evergreen sees it."""

from __future__ import annotations

from evergreen.rubric.known import Judged, Known
from evergreen.rubric.people import declare

_MADE_FROM = ("trained", "features", "evaluation")


def reproducible(known: Known) -> Judged:
    """Seeds, data and code by digest, and a model that answers elsewhere as its trainer did."""
    live, again = known.live, f"`evergreen retrain {known.declaration.name}`"
    if live is None:
        return Judged(0.0, "no version is live", f"let one go live: {again}")
    kept = [name for name in _MADE_FROM if (live.origin.get(name) or {}).get("digest")]
    told = f"version {live.version}: snapshot {live.snapshot_digest[:12]}"
    if len(kept) == len(_MADE_FROM) and known.passed("same predictions"):
        return Judged(
            1.0, f"{told}, digests of {', '.join(kept)}; same predictions in a clean process"
        )
    return Judged(
        0.5 if live.snapshot_digest else 0.0,
        f"{told}; what else it was made from, or that it answers alike elsewhere, isn't known",
        f"retrain, so that the live version has it: {again}",
    )


def pipeline_tested(known: Known) -> Judged:
    """Every retrain goes the whole way; that is production, not a test before it."""
    whole = next((row for row in known.promotions if "completed" in known.looks[row.id]), None)
    if whole is None:
        return Judged(
            0.0,
            "no run went all the way from data to a live version lately",
            f"run it: `evergreen retrain {known.declaration.name}`",
        )
    return Judged(
        0.5,
        f"the run that made version {whole.version} live went through every stage",
        "run the pipeline in CI before changes reach production (`evergreen replay` over old data "
        f"does it), then {declare('pipeline_tested')}",
    )


def validated_before_serving(known: Known) -> Judged:
    """The live version came through the gate, which lets no slow decay through."""
    name, verdict = known.declaration.name, known.verdict
    if verdict is None or not verdict.promotes:
        return Judged(
            0.0,
            "no verdict let the live version in",
            f"let one go live through the gate: `evergreen retrain {name}`",
        )
    if verdict.override:
        return Judged(
            0.5,
            f"a person let it in: {verdict.override}",
            f"let a version go live by evidence alone: `evergreen retrain {name}`",
        )
    gate = known.declaration.gate
    if gate.promote_when != "superior" and not known.passed("floor "):
        return Judged(
            0.5,
            f"verdict {verdict.verdict}; each version may be a little worse than the one before",
            "declare `gate.floors`: with `promote_when: non_inferior` nothing else stops slow decay",
        )
    return Judged(1.0, f"verdict {verdict.verdict}: {verdict.reason}")


def canaried(known: Known) -> Judged:
    """A canary that is declared, and a bake on real requests that a version passed."""
    serving, live = known.declaration.serving, known.live
    bad = live is not None and "disproved" in known.looks[live.id]
    if live is not None and bad:
        return Judged(
            0.0,
            f"version {live.version} failed its bake and is still live",
            f"go back: `evergreen rollback {known.declaration.name} --version ... --reason ...`",
            failing=True,
        )
    passed = next((row for row in known.promotions if "watched" in known.looks[row.id]), None)
    canary = "declare `serving.candidate: {mode: canary}` and try versions before they go live: "
    canary += f"`evergreen candidate {known.declaration.name} <version>`"
    if passed is not None:
        told = f"version {passed.version} was watched on real requests and was well"
        if serving.candidate.mode == "canary":
            return Judged(1.0, f"{told}; canaries are declared")
        return Judged(0.5, told, canary)
    if serving.replicas:
        return Judged(
            0.5 if live else 0.0,
            f"{len(serving.replicas)} replicas are declared; no recent version was watched to the end",
            f"let `{known.declaration.name}.bake` watch a version for `bake.watch`",
        )
    return Judged(
        0.0,
        "no replica is declared, so no version was watched on requests",
        "declare `serving.replicas`; for a model that only scores partitions, "
        + declare("canaried"),
    )


def rolled_back(known: Known) -> Judged:
    """A rollback that was drilled lately, or at least is."""
    name, drill, live = known.declaration.name, known.drill, known.live
    again = f"run `evergreen drill {name}`"
    if drill is not None and not drill.passed:
        return Judged(
            0.0,
            f"the last drill, as of {drill.as_of:%Y-%m-%d}, failed",
            f"see why: `evergreen status {name}`; then {again}",
            failing=True,
        )
    if drill is not None:
        took = f" in {drill.restore_seconds:.1f} s" if drill.restore_seconds is not None else ""
        told = f"drilled as of {drill.as_of:%Y-%m-%d}: version {drill.target} restored{took}"
        if known.lately(drill.as_of):
            return Judged(1.0, told)
        return Judged(0.5, f"{told}; that is long ago", f"{again}, or declare `rollback.drill`")
    back = next((row for row in known.promotions if row.kind == "rollback"), None)
    if back is not None:
        return Judged(0.5, f"went back to version {back.version}; never drilled", again)
    if known.declaration.rollback.drill and live is not None:
        return Judged(
            0.5,
            f"a drill is declared ({known.declaration.rollback.drill}); none has been run",
            f"{again} (or start {name}.drill) once a second version is verified",
        )
    return Judged(0.0, "no rollback was ever tried", f"let a version go live; then {again}")


TESTS = {
    "reproducible": reproducible,
    "pipeline_tested": pipeline_tested,
    "validated_before_serving": validated_before_serving,
    "canaried": canaried,
    "rolled_back": rolled_back,
}
