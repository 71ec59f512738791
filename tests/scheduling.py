"""Which test process runs which files.

Two, for two cores, take the longest files first. Those wait at times, for a service that is away or
a worker that is missed; a third, at low priority, works in such moments and is not in the way. What
it is given may take its time: no test in it looks at a clock.
"""

from __future__ import annotations

import os
from pathlib import Path

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

#: Files that run in one process, one after the other: some stand on one thing, which takes minutes
#: to make; and an Airflow works as long as it runs, so the fewer at once, the less is in the way.
LANES = {
    "topology": ("integration/composed/",),
    "standalone": (
        "integration/test_demo.py", "integration/test_pages.py", "integration/together/",
    ),
}  # fmt: skip
#: The process at low priority: 36 shares of a core where others have 1,024.
THIRD, NICE = "gw2", 15
#: What it runs, in this order.
PATIENT = {
    "scenarios": (
        "monitoring", "late_labels", "rollback", "continuous_training", "failures", "bad_data",
        "tasks", "arrivals", "suppression",
    ),
    "unit/lifecycle": (
        "bootstrap", "production", "performance_lives", "monitoring", "gating", "skew",
        "evaluation", "performance", "trial", "ingestion", "preparation", "labels", "escalation",
        "baking_labels", "driftreport", "bakestate",
    ),
    "unit/ui": ("pages", "acting", "access", "evidence", "reports"),
    "unit/ledger": ("overview", "acts", "chronicle"),
}  # fmt: skip
FILES = [f"tests/{folder}/test_{name}.py" for folder, names in PATIENT.items() for name in names]


def give_way() -> None:
    """Leave the cores to other processes, with all that is started from here."""
    os.setsid()  # a priority counts among the processes of a session, and between sessions theirs
    os.nice(NICE)
    session = Path("/proc/self/autogroup")
    if session.exists():
        session.write_text(str(NICE))


class Scheduling(LoadFileScheduling):
    """``--dist loadfile``, but for the lanes and the third process."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        within = file.removeprefix("tests/")
        return next((lane for lane, of in LANES.items() if within.startswith(of)), file)

    def _assign_work_unit(self, node: WorkerController) -> None:
        """The others take what the third could run when nothing else is left."""
        third = node.gateway.id == THIRD and len(self.nodes) > 1
        patient = [scope for scope in FILES if scope in self.workqueue]
        if third and not patient:
            node.shutdown()
            return
        others = [scope for scope in self.workqueue if scope not in patient]
        self.workqueue.move_to_end((patient if third else others + patient[::-1])[0], last=False)
        super()._assign_work_unit(node)
