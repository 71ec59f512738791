"""What a task used: one line of its closing block, Airflow's own metrics, and the run's cost.

Metrics go wherever Airflow's go, StatsD or OpenTelemetry, as gauges named ``evergreen.stage.*``
with the tags ``model`` and ``stage``. What a task cost is kept with the task from try to try and
under an XCom key, for the task that concludes the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evergreen.lifecycle.resources import Meter, Usage

if TYPE_CHECKING:
    from airflow.sdk import Context

    from evergreen.declaration import Declaration

# XCom key and key of the task's state: what a task has cost, over all of its tries.
COST = "cost"


def account(
    meter: Meter,
    context: Context,
    model: Declaration,
    stage: str,
    *,
    rows: int | None = None,
    billed: float | None = None,
) -> str:
    """Emit what a task's try has used, and keep what it cost when a price is declared.

    :param rows: how many rows the stage was about, where that is known.
    :param billed: seconds that are paid for, where it isn't the task that works: those of all of
        its tries, as whoever sends the bill counts them.
    :returns: the line for the task's log.
    """
    usage = meter.read()
    placement = model.compute.get(stage)  # type: ignore[call-overload]  # a stage's name
    price = None if placement is None else placement.price
    cost = None if price is None else usage.cost(price, billed=billed)
    _emit(usage, model.name, stage, rows=rows, cost=cost)
    line = usage.describe(rows)
    if cost is None:
        return line
    total = _keep(context, cost, whole=billed is not None)
    return f"{line}, cost about {total:.4g} at {price:g} an hour"


def run_cost(context: Context, model: Declaration) -> str | None:
    """What a run's tasks have cost until now, as a line for the log; emitted, too.

    None when no stage of the model has a price. Meant for the task that ends the run.
    """
    if all(placement.price is None for placement in model.compute.values()):
        return None
    tasks = list(context["dag"].task_ids)
    found: list[Any] = context["ti"].xcom_pull(task_ids=tasks, key=COST) or []
    costs: dict[str, float] = {each["task"]: each["cost"] for each in found if each}
    total = sum(costs.values())
    _gauge("evergreen.run.cost", total, {"model": model.name})
    dearest = sorted(costs, key=lambda task: (-costs[task], task))
    parts = ", ".join(f"{task} {costs[task]:.4g}" for task in dearest)
    return f"cost of this run: about {total:.4g} ({parts or 'no task with a price has run'})"


def _keep(context: Context, cost: float, *, whole: bool) -> float:
    """Add a try's cost to what the task has cost before, unless it is the whole; return the sum.

    A try that was killed is not in it, and nor is what a task costs before it starts.
    """
    state: Any = context["task_state_store"]
    total = cost if whole else float(state.get(COST) or 0.0) + cost
    state.set(COST, total)
    context["ti"].xcom_push(key=COST, value={"task": context["ti"].task_id, "cost": total})
    return total


def _emit(usage: Usage, model: str, stage: str, *, rows: int | None, cost: float | None) -> None:
    measured = {
        "seconds": usage.seconds,
        "cpu_seconds": usage.cpu_seconds,
        "peak_mb": max(usage.peak_mb, usage.child_peak_mb),
        "rows": rows,
        "cost": cost,
    }
    for name, value in measured.items():
        if value is not None:
            _gauge(f"evergreen.stage.{name}", value, {"model": model, "stage": stage})


def _gauge(name: str, value: float, tags: dict[str, str]) -> None:
    from airflow.sdk.observability import stats

    stats.gauge(name, value, tags=tags)
