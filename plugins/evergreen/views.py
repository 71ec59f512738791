"""How the command line shows things to a person: Rich tables, one function a command."""

from __future__ import annotations

from typing import Any

from rich.console import Console
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
    """One row a model."""
    table = Table(title="Models", title_justify="left", expand=False)
    for heading in (
        "model",
        "live",
        "since",
        "data to",
        "last decision",
        "open signals",
        "last scored",
    ):
        table.add_column(heading)
    for entry in found:
        until = f" until {entry['suppressed_until']}" if entry["suppressed_until"] else ""
        metrics = ", ".join(f"{k} {v:.4f}" for k, v in list(entry["last_metrics"].items())[:2])
        table.add_row(
            entry["model"],
            entry["version"] or "–",
            _day(entry["live_since"]),
            _day(entry["watermark"]),
            coloured(entry["last_decision"]) + until,
            ", ".join(entry["open_signals"]) or "none",
            f"{entry['last_scored'] or '–'} {metrics}",
        )
    console.print(table)
    for entry in found:
        if entry["why"]:
            console.print(
                f"{entry['model']}: version {entry['version']} is live because: {entry['why']}",
                highlight=False,
            )


def history(console: Console, entries: list[dict[str, Any]]) -> None:
    """One panel a decision: reasons, the gate's table, what came of it."""
    if not entries:
        console.print("no decision yet")
    for entry in entries:
        decision, verdict, promotion = entry["decision"], entry["verdict"], entry["promotion"]
        lines = [*decision["reasons"]]
        if verdict:
            for rule in verdict["rules"]:
                mark = "[green]pass[/]" if rule["passed"] else "[red]FAIL[/]"
                lines.append(
                    f"{mark}  {rule['name']}: {rule['observed']}  [dim](bound: {rule['bound']})[/]"
                )
            lines.append(f"verdict {coloured(verdict['verdict'])}: {verdict['reason']}")
            lines.append(f"[dim]MLflow run {verdict['mlflow_run']}[/]")
        if promotion:
            lines.append(
                f"[green]version {promotion['version']} went live[/], replacing {promotion['replaced'] or 'nothing'}"
            )
        elif entry["outcome"]:
            lines.append(
                f"outcome {coloured(entry['outcome']['outcome'])}: {entry['outcome']['detail']}"
            )
        title = f"{decision['as_of']:%Y-%m-%d}  {coloured(decision['action'])}  {decision['cause'] or ''}"
        console.print(
            Panel(
                "\n".join(lines),
                title=title,
                title_align="left",
                subtitle=decision["run_id"],
                subtitle_align="right",
            )
        )


def replay_table() -> Table:
    """The columns of a replay's rows."""
    table = Table(show_edge=False, pad_edge=False)
    for heading, justify in (
        ("partition", "left"),
        ("rows", "right"),
        ("cause", "left"),
        ("decision", "left"),
        ("verdict", "left"),
        ("live", "right"),
        ("champion", "right"),
        ("frozen", "right"),
        ("s", "right"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]  # Rich's literal
    return table


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
