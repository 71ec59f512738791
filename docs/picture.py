"""Draw docs/demo.svg and docs/history.svg from a finished demo.

Run by hand: `make demo ARGS="--exit --fresh --report year.json"`, then
`.venv/bin/python docs/picture.py year.json .evergreen/demo`.
"""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from evergreen import views
from evergreen.demo import MODEL, _sum_up
from evergreen.replay import Row
from evergreen.reporting import history_of
from evergreen.workspace import Workspace

HERE = Path(__file__).parent
WIDTH = 176  # the widest line that the demo prints


def draw(name: str, title: str, show: Callable[[Console], None]) -> None:
    """Write what ``show`` prints to ``name``, without the web font that Rich would link."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    show(console)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title=title), flags=re.DOTALL)
    svg = svg.replace("Fira Code, monospace", "monospace")
    (HERE / name).write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


def main(report: Path, home: Path) -> None:
    """Print what the demo printed, and what `evergreen history` says of its last two decisions."""
    rows = [Row(**row) for row in json.loads(report.read_text())]
    entries = history_of(MODEL, Workspace.from_environment({"EVERGREEN_HOME": str(home)}))[-2:]

    def year(console: Console) -> None:
        plain = {"highlight": False, "markup": False, "soft_wrap": True}
        console.print(views.replay_heading("log_loss", "roc_auc"), style="bold", **plain)
        for row in rows:
            console.print(views.replay_line(row, "log_loss", "roc_auc"), **plain)
        _sum_up(console, rows, sum(row.seconds for row in rows))

    draw("demo.svg", "make demo", year)
    draw(
        "history.svg",
        f"evergreen history {MODEL} (its last two decisions)",
        lambda console: views.history(console, entries),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
