"""The REST client against a transport that answers as Airflow 3.3 does."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from evergreen.airflow_client import AirflowClient, AirflowError, RequestError

Handler = Callable[[httpx.Request], httpx.Response]


def connect(handler: Handler) -> AirflowClient:
    """Return a client of `handler`, which need not know about logging in."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/auth/token":
            return httpx.Response(201, json={"access_token": "first"})
        return handler(request)

    transport = httpx.MockTransport(answer)
    return AirflowClient("http://airflow/", "admin", "secret", transport=transport)


def test_an_expired_token_is_renewed() -> None:
    issued = iter(["expired", "fresh"])

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/auth/token":
            assert json.loads(request.content) == {"username": "admin", "password": "secret"}
            return httpx.Response(201, json={"access_token": next(issued)})
        if request.headers["Authorization"] != "Bearer fresh":
            return httpx.Response(401)
        return httpx.Response(200, json={"dag_run_id": "r"})

    transport = httpx.MockTransport(answer)
    with AirflowClient("http://airflow", "admin", "secret", transport=transport) as client:
        assert client.dag_run("d", "r") == {"dag_run_id": "r"}


def test_a_wrong_password_is_an_error_that_does_not_show_it() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(401, json={"detail": "Invalid"}))
    client = AirflowClient("http://airflow", "admin", "secret", transport=transport)
    with pytest.raises(RequestError, match=r"POST http://airflow/auth/token: 401: Invalid") as it:
        client.dag_run("d", "r")
    assert "secret" not in str(it.value)


def test_an_error_names_the_address_the_status_and_the_detail() -> None:
    client = connect(lambda _: httpx.Response(404, json={"detail": "no such run"}))
    url = r"http://airflow/api/v2/dags/d/dagRuns/a%2Fb%3A%2B"
    with pytest.raises(RequestError, match=rf"GET {url}: 404: no such run"):
        client.dag_run("d", "a/b:+")


def test_triggering_a_run_that_exists_returns_it() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(409, json={"detail": "exists"})
        return httpx.Response(200, json={"dag_run_id": "r", "state": "success"})

    assert connect(answer).trigger("d", "r", {"partition": "2013-01"})["state"] == "success"


def test_lists_are_read_to_the_last_page() -> None:
    names = [f"{'m' if n % 2 else 'other'}_{n}" for n in range(250)]

    def answer(request: httpx.Request) -> httpx.Response:
        offset, limit = (int(request.url.params[it]) for it in ("offset", "limit"))
        page = [{"dag_id": name} for name in names[offset : offset + limit]]
        return httpx.Response(200, json={"dags": page, "total_entries": len(names)})

    found = connect(answer).dags("m_")
    assert [dag["dag_id"] for dag in found] == [name for name in names if name[0] == "m"]


def test_a_connection_error_is_retried() -> None:
    answers = iter([httpx.ConnectError("refused"), httpx.Response(200, json={"state": "queued"})])

    def answer(request: httpx.Request) -> httpx.Response:
        outcome = next(answers)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert connect(answer).dag_run("d", "r") == {"state": "queued"}


def test_waiting_for_a_dag_that_does_not_parse_shows_why() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("importErrors"):
            broken = [{"filename": "d.py", "stack_trace": "SyntaxError: oops"}]
            return httpx.Response(200, json={"import_errors": broken, "total_entries": 1})
        return httpx.Response(404, json={"detail": "not found"})

    with pytest.raises(AirflowError, match=r"'d' did not appear within 0.1 s: d.py:\nSyntaxError"):
        connect(answer).wait_for_dag("d", 0.1)


def test_waiting_for_a_run_that_does_not_end_shows_its_tasks() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("taskInstances"):
            tasks = [{"task_id": "train", "state": "running"}]
            return httpx.Response(200, json={"task_instances": tasks, "total_entries": 1})
        return httpx.Response(200, json={"state": "running"})

    with pytest.raises(AirflowError, match=r"is running after 0 s: \{'train': 'running'\}"):
        connect(answer).wait_for_run("d", "r", 0)


def test_a_log_is_one_event_a_line() -> None:
    content = [{"event": "one", "level": "info"}, {"event": "two"}]
    client = connect(lambda _: httpx.Response(200, json={"content": content}))
    assert client.log("d", "r", "t") == "one\ntwo"


@pytest.mark.parametrize("given", [None, {"comment": "seen"}])
def test_an_answer_carries_what_was_filled_into_the_form(given: dict[str, str] | None) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={})

    connect(answer).answer("d", "r", "t", "Acknowledge", params_input=given)
    (request,) = asked
    assert (request.method, request.url.path) == (
        "PATCH",
        "/api/v2/dags/d/dagRuns/r/taskInstances/t/-1/hitlDetails",
    )
    assert json.loads(request.content) == {
        "chosen_options": ["Acknowledge"],
        "params_input": given or {},
    }
