"""How the command line shows things to a person: Rich tables, one function a command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

COLOURS = {
    "promote": "green",
    "bootstrap": "green",
    "reject": "red",
    "inconclusive": "yellow",
    "incomparable": "magenta",
    "suppress": "dim",
    "investigate": "bold red",
    "healthy": "green",
    "drifting": "yellow",
    "degraded": "red",
    "stopped": "bold red",
    "paused": "bold yellow",
    "failed": "bold red",
    "verified": "green",
    "disproved": "bold red",
    "rollback": "bold yellow",
    "rolled_back": "bold yellow",
}

ACTS = {
    "retrain": "asked for a retrain",
    "roll_back": "asked for a rollback",
    "acknowledge": "acknowledged the escalation",
    "decline": "left automatic retraining stopped",
    "pause": "paused automatic retraining",
    "resume": "resumed automatic retraining",
    "try": "asked for a trial beside the champion",
    "end_trial": "ended the trial beside the champion",
}


def coloured(word: str | None) -> str:
    """A verdict or decision in its colour."""
    if not word:
        return "–"
    colour = COLOURS.get(word)
    return f"[{colour}]{word}[/]" if colour else word


def checks(console: Console, found: list[dict[str, Any]]) -> None:
    """One line a model file; a problem below its file."""
    for entry in found:
        mark = "[green]ok[/]" if entry["problem"] is None else "[red]not usable[/]"
        console.print(f"{mark} {entry['file']}", highlight=False)
        if entry["problem"]:
            console.print(entry["problem"], style="red", highlight=False, markup=False)


def status(console: Console, found: list[dict[str, Any]]) -> None:
    """One row a model; below, why its version is live and how it last did."""
    table = Table(title="Models", title_justify="left")
    for heading in (
        "model", "health", "priority", "live", "since", "data to", "last decision", "open signals",
    ):  # fmt: skip
        table.add_column(heading, no_wrap=True)
    for entry in found:
        table.add_row(
            entry["model"],
            coloured(entry["health"]),
            entry["priority"] or "–",
            entry["version"] or "–",
            _day(entry["live_since"]),
            _day(entry["watermark"]),
            coloured(entry["last_decision"]),
            ", ".join(f"{count} {cause}" for cause, count in entry["open_signals"].items())
            or "none",
        )
    console.print(table)
    for entry in found:
        for line in _remarks(entry):
            console.print(
                f"{entry['model']}: {line}", highlight=False, markup=False, soft_wrap=True
            )


def _remarks(entry: dict[str, Any]) -> Iterator[str]:
    if entry["why"]:
        yield f"version {entry['version']} is live because: {entry['why']}"
    yield from _back(entry)
    if entry["stopped"]:
        yield f"STOPPED at {entry['priority']} until a person acknowledges: {entry['stopped']}"
    if held := entry["paused"]:
        yield (
            f"automatic retraining is paused by {held['person']} since {_day(held['since'])}: "
            f"{held['comment']}"
        )
    for said in entry["answers"]:
        yield f"{said['answer']} by {said['person'] or 'nobody'}: {said['comment']}"
    yield from _watched(entry)
    if entry["suppressed_until"]:
        yield f"suppressed until {entry['suppressed_until']}: {entry['last_reasons'][-1]}"
    if entry["in_flight"]:
        yield f"retraining now: {', '.join(entry['in_flight'])}"
    if entry["last_scored"]:
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in entry["last_metrics"].items())
        yield f"last scored {entry['last_scored']}: {metrics}"


def _back(entry: dict[str, Any]) -> Iterator[str]:
    """Whether the live version has proved itself, and what a rollback would do."""
    if entry["version"]:
        proof = f": {entry['proof']}" if entry["proof"] else ""
        yield f"version {entry['version']} is {entry['promotion']}{proof}"
        back = entry["rolls_back_to"]
        yield (
            f"a rollback returns to version {back}" if back else "nothing verified to roll back to"
        )
    for version, reason in entry["quarantined"].items():
        yield f"version {version} is quarantined: {reason}"
    if entry["last_drill"] is not None:
        yield _drilled(entry["last_drill"])


def _drilled(drill: dict[str, Any]) -> str:
    if not drill["passed"]:
        return f"last drill FAILED: {drill['problem']}"
    return f"last drill: version {drill['target']} restored in {drill['restore_seconds']:.1f} s"


def _watched(entry: dict[str, Any]) -> Iterator[str]:
    """What monitoring saw last."""
    for window in dict.fromkeys(entry["judged_in"].values()):  # labels may come later than answers
        causes = [cause for cause, key in entry["judged_in"].items() if key == window]
        found = [
            f"{c} ({', '.join(entry['violates'][c])})" for c in causes if c in entry["violates"]
        ]
        yield f"window {window}, judged for {' and '.join(causes)}: violates {', '.join(found) or 'nothing'}"
    if entry["drift_share"] is not None:
        yield f"inputs drifted by importance: {entry['drift_share']:.0%}"
    estimates = entry["estimated"] or {}
    for name, value in (entry["realised"] or {}).items():
        before = f", estimated {_interval(estimates[name])}" if name in estimates else ""
        told = f"realised {_interval(value)} on {entry['matured']:,} labels"
        yield f"{name} in {entry['measured_in']}: {told}{before}"


def history(console: Console, entries: list[dict[str, Any]]) -> None:
    """One panel a decision: reasons, the gate's table, what came of it."""
    if not entries:
        console.print("no decision yet")
    for entry in entries:
        if entry["decision"] is None:
            _by_hand(console, entry)
            continue
        decision = entry["decision"]
        action, cause = coloured(decision["action"]), decision["cause"] or ""
        console.print(
            Panel(
                "\n".join(_told(entry)),
                title=f"{decision['as_of']:%Y-%m-%d}  {action}  {escape(cause)}",
                title_align="left",
                subtitle=escape(decision["run_id"]),
                subtitle_align="right",
            )
        )


def _by_hand(console: Console, entry: dict[str, Any]) -> None:
    """What no decision of the arbiter's made."""
    if entry["promotion"] is not None:
        _rollback(console, entry["promotion"])
    else:
        _act(console, entry["act"])


def _act(console: Console, act: dict[str, Any]) -> None:
    """What a person asked for, in one line; dated by the day on which they did."""
    said = f"{act['person']} {ACTS[act['act']]}"
    console.print(
        Panel(
            escape(f"{said}: {act['comment']}" if act["comment"] else said),
            title=f"{act['recorded_at']:%Y-%m-%d}  {coloured(act['act'])}",
            title_align="left",
        )
    )


def _rollback(console: Console, back: dict[str, Any]) -> None:
    """A return to an earlier version: who, when and why."""
    lines = (
        f"[yellow]version {back['version']} came back[/], replacing {back['replaced']}",
        f"asked by {escape(back['person'] or 'the machine')}: {escape(back['reason'])}",
    )
    console.print(
        Panel(
            "\n".join(lines),
            title=f"{back['as_of']:%Y-%m-%d}  {coloured('rollback')}",
            title_align="left",
            subtitle=escape(back["run_id"]),
            subtitle_align="right",
        )
    )


def _told(entry: dict[str, Any]) -> Iterator[str]:
    """A decision's lines. What people and data wrote is escaped: it may hold brackets."""
    verdict, promotion, outcome = entry["verdict"], entry["promotion"], entry["outcome"]
    yield from map(escape, entry["decision"]["reasons"])
    if verdict:
        for rule in verdict["rules"]:
            mark = "[green]pass[/]" if rule["passed"] else "[red]FAIL[/]"
            found = escape(f"{rule['name']}: {rule['observed']}")
            yield f"{mark}  {found}  [dim](bound: {escape(rule['bound'])})[/]"
        yield f"verdict {coloured(verdict['verdict'])}: {escape(verdict['reason'])}"
        yield f"[dim]MLflow run {escape(verdict['mlflow_run'])}[/]"
    if promotion:
        replaced = promotion["replaced"] or "nothing"
        yield f"[green]version {promotion['version']} went live[/], replacing {replaced}"
        for event in ("watched", "proven", "verified", "disproved"):
            if event in entry["events"]:
                told = entry["events"][event].get("reason")
                yield f"{coloured(event)}{': ' + escape(told) if told else ''}"
    elif outcome:
        yield f"outcome {coloured(outcome['outcome'])}: {escape(outcome['detail'])}"


def rubric(console: Console, found: dict[str, Any]) -> None:
    """Four tables, one a section: points, how they came, and what to do next."""
    colours = {1.0: "green", 0.5: "yellow", 0.0: "red"}
    for section, points in found["sections"].items():
        table = Table(title=f"{section}: {points:g} of 7", title_justify="left")
        for heading, least in (("", 3), ("test", 24), ("by", 9), ("found, and what to do", 30)):
            table.add_column(heading, min_width=least, overflow="fold")
        for test in (each for each in found["findings"] if each["section"] == section):
            todo = f"\n→ {escape(test['todo'])}" if test["todo"] else ""
            table.add_row(
                f"[{colours[test['points']]}]{test['points']:g}[/]",
                f"{test['number']} {test['title']}",
                test["by"],
                f"{escape(test['evidence'])}{todo}",
            )
        console.print(table)
    console.print(
        f"ML Test Score of {found['model']}: {found['total']:g}, the smallest section: "
        f"{found['reading']}",
        highlight=False,
        soft_wrap=True,
    )


def replay_line(row: Any, primary: str, second: str | None) -> str:
    """One partition, in columns, for a terminal or a log."""

    def figures(who: str) -> str:
        found = row.metrics.get(who, {})
        return " ".join(
            f"{found[m]:.4f}" if m in found else "  –   " for m in (primary, second) if m
        )

    drift = "–" if row.drift is None else f"{row.drift:.0%}"
    estimated = "–" if row.estimated is None else f"{row.estimated:.4f}"
    return (
        f"{row.partition:<10} {row.rows:>9,} {drift:>6} {','.join(row.violates) or '–':<22.22} "
        f"{row.cause or '–':<11} {row.decision:<11} {row.verdict or '–':<13} "
        f"{row.champion_version or '–':>4}  {estimated:<7} {figures('champion'):<15} "
        f"{figures('frozen'):<15} {row.seconds:>6.1f}"
    )


def replay_heading(primary: str, second: str | None) -> str:
    """The heading over `replay_line`, with the metrics' names."""
    names = f"{primary}, {second}" if second else primary
    return (
        f"{'partition':<10} {'rows':>9} {'drift':>6} {'violates':<22} {'cause':<11} "
        f"{'decision':<11} {'verdict':<13} {'live':>4}  {'expect.':<7} {'champion':<15} "
        f"{'frozen':<15} {'s':>6}   ({names})"
    )


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"


def _day(text: str | None) -> str:
    return text[:10] if text else "–"
