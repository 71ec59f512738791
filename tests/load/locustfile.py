"""The load: so many requests by so many users, each with an id of its own, all of them written down.

Run by `tests.load.run`, as ``locust -f …`` in a process of its own. What to do is in ``LOAD``, a
JSON object: ``count``, ``rate`` (requests a second and user; null for as fast as they go),
``paths`` and ``bodies`` (taken in turn), ``out``; ``until``, a file, to go on after ``count`` until
that is there, but for no more than ``most`` in all.
"""

from __future__ import annotations

import json
import os
import time
from itertools import count
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant_throughput, events, task
from locust.exception import StopUser

PLAN: dict[str, Any] = json.loads(os.environ["LOAD"])
KEY = os.environ.get("EVERGREEN_SERVING_API_KEY")
number = count()
begun: list[int] = []
answers: list[dict[str, Any]] = []


def over() -> bool:
    """Whether enough was asked."""
    if len(begun) < PLAN["count"]:
        return False
    return len(begun) >= PLAN["most"] or not PLAN["until"] or Path(PLAN["until"]).exists()


class Client(FastHttpUser):
    """A keep-alive connection that asks again as soon as it was answered, or at its rate."""

    connection_timeout = network_timeout = 30.0
    if PLAN["rate"]:
        wait_time = constant_throughput(PLAN["rate"])

    @task
    def ask(self) -> None:
        """Ask once, and write down what came of it."""
        if over():
            self.leave()
            raise StopUser
        mine = next(number)
        begun.append(mine)
        case = mine % len(PLAN["bodies"])
        headers = {"Content-Type": "application/json", "X-Request-Id": f"{PLAN['name']}-{mine}"}
        if KEY:
            headers["Authorization"] = f"Bearer {KEY}"
        began, clock = time.time(), time.perf_counter()
        with self.client.post(
            PLAN["paths"][case % len(PLAN["paths"])],
            data=json.dumps(PLAN["bodies"][case]),
            headers=headers,
            catch_response=True,
        ) as response:
            response.success()  # failures are counted by who reads the answers
            answers.append(
                {
                    "id": headers["X-Request-Id"],
                    "status": response.status_code,
                    "version": (response.headers or {}).get("X-Evergreen-Version"),
                    "began": began,
                    "ms": 1000 * (time.perf_counter() - clock),
                    "error": str(getattr(response, "error", ""))
                    or None,  # only a failed one has it
                    "body": str(response.text)[:500] if response.status_code != 200 else None,
                }
            )
        self.leave()

    def leave(self) -> None:
        """End the whole load, with the last answer."""
        if over() and len(answers) == len(begun):
            self.environment.runner.quit()


@events.quitting.add_listener
def write(**_: Any) -> None:
    """All answers, whole, when the last one is there."""
    out = Path(PLAN["out"])
    aside = out.with_name(f".{out.name}")
    aside.write_text(json.dumps(answers))
    aside.rename(out)
