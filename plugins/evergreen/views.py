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
    "failed": "bold red",
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
    if entry["stopped"]:
        yield f"STOPPED at {entry['priority']} until a person acknowledges: {entry['stopped']}"
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


def _watched(entry: dict[str, Any]) -> Iterator[str]:
    """What monitoring saw last."""
    if entry["window"]:
        found = [f"{cause} ({', '.join(what)})" for cause, what in entry["violates"].items()]
        yield f"window {entry['window']}: violates {', '.join(found) or 'nothing'}"
    if entry["drift_share"] is not None:
        yield f"inputs drifted by importance: {entry['drift_share']:.0%}"
    estimates = entry["estimated"] or {}
    for name, value in (entry["realised"] or {}).items():
        before = f", estimated {_interval(estimates[name])}" if name in estimates else ""
        yield f"{name}: realised {_interval(value)} on {entry['matured']:,} labels{before}"


def history(console: Console, entries: list[dict[str, Any]]) -> None:
    """One panel a decision: reasons, the gate's table, what came of it."""
    if not entries:
        console.print("no decision yet")
    for entry in entries:
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
    elif outcome:
        yield f"outcome {coloured(outcome['outcome'])}: {escape(outcome['detail'])}"


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
