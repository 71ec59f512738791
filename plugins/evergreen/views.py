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
    for heading in ("model", "live", "since", "data to", "last decision", "open signals"):
        table.add_column(heading, no_wrap=True)
    for entry in found:
        table.add_row(
            entry["model"],
            entry["version"] or "–",
            _day(entry["live_since"]),
            _day(entry["watermark"]),
            coloured(entry["last_decision"]),
            ", ".join(entry["open_signals"]) or "none",
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
    if entry["suppressed_until"]:
        yield f"suppressed until {entry['suppressed_until']}: {entry['last_reasons'][-1]}"
    if entry["in_flight"]:
        yield f"retraining now: {', '.join(entry['in_flight'])}"
    if entry["last_scored"]:
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in entry["last_metrics"].items())
        yield f"last scored {entry['last_scored']}: {metrics}"


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

    return (
        f"{row.partition:<10} {row.rows:>9,}  {row.cause or '–':<9} {row.decision:<9} "
        f"{row.verdict or '–':<13} {row.champion_version or '–':>4}   {figures('champion'):<15} {figures('frozen'):<15} {row.seconds:>6.1f}"
    )


def replay_heading(primary: str, second: str | None) -> str:
    """The heading over `replay_line`, with the metrics' names."""
    names = f"{primary}, {second}" if second else primary
    return (
        f"{'partition':<10} {'rows':>9}  {'cause':<9} {'decision':<9} {'verdict':<13} {'live':>4}   "
        f"{'champion':<15} {'frozen':<15} {'s':>6}   ({names})"
    )


def _day(text: str | None) -> str:
    return text[:10] if text else "–"
