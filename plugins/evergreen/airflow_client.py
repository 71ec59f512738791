"""A client for Airflow's REST API: what the demo, the replay and the scenario tests ask of it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

Json = dict[str, Any]

PAGE = 100
FINISHED = frozenset({"success", "failed"})


class AirflowError(RuntimeError):
    """Airflow refused a request, or did not reach an expected state in time."""


class RequestError(AirflowError):
    """Airflow answered with an error; `status` is its HTTP code."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        request = response.request
        super().__init__(f"{request.method} {request.url}: {self.status}: {_detail(response)}")


class TokenAuth(httpx.Auth):
    """Fetch a JWT before the first request, and a new one when Airflow calls it expired."""

    requires_response_body = True

    def __init__(self, url: str, username: str, password: str) -> None:
        self._url = f"{url}/auth/token"
        self._login = {"username": username, "password": password}
        self._token = ""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send `request` with a token; on 401 once more with a fresh one."""
        if not self._token:
            yield from self._renew()
        request.headers["Authorization"] = f"Bearer {self._token}"
        response = yield request
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            yield from self._renew()
            request.headers["Authorization"] = f"Bearer {self._token}"
            yield request

    def _renew(self) -> Generator[httpx.Request, httpx.Response, None]:
        response = yield httpx.Request("POST", self._url, json=self._login)
        if response.is_error:
            raise RequestError(response)
        self._token = response.json()["access_token"]


class AirflowClient:
    """Airflow's REST API with a token that renews itself and retries while it can't be reached.

    Every call is safe to repeat: triggering a run that exists returns that run.

    :param url: the base URL, such as `http://127.0.0.1:8080`
    :param username: who to log in as
    :param password: that user's password
    :param timeout: seconds to wait for one answer
    """

    def __init__(
        self,
        url: str,
        username: str,
        password: str,
        *,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=f"{self.url}/api/v2",
            auth=TokenAuth(self.url, username, password),
            timeout=timeout,
            transport=transport,
            trust_env=False,  # a proxy of the environment must not stand before loopback
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self) -> Json:
        """Return the state of Airflow's components."""
        return self._get("/monitor/health")

    def dags(self, prefix: str = "") -> list[Json]:
        """Return the DAGs whose id starts with `prefix`."""
        return [dag for dag in self._pages("/dags", "dags") if dag["dag_id"].startswith(prefix)]

    def import_errors(self) -> list[Json]:
        """Return the files that could not be parsed, each with its `stack_trace`."""
        return list(self._pages("/importErrors", "import_errors"))

    def wait_for_dag(self, dag_id: str, timeout: float) -> Json:
        """Return the DAG once it is parsed; raise `AirflowError` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                return self._get(_path("dags", dag_id))
            except RequestError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
            time.sleep(0.2)
        broken = [f"{it['filename']}:\n{it['stack_trace']}" for it in self.import_errors()]
        reason = "\n".join(broken) or "no file failed to import"
        raise AirflowError(f"DAG {dag_id!r} did not appear within {timeout:g} s: {reason}")

    def unpause(self, dag_id: str) -> Json:
        """Let the scheduler run the DAG."""
        return self._send("PATCH", _path("dags", dag_id), json={"is_paused": False})

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any] | None = None) -> Json:
        """Start a run, or return the one that has this `run_id`."""
        body = {"dag_run_id": run_id, "conf": dict(conf or {}), "logical_date": None}
        try:
            return self._send("POST", _path("dags", dag_id, "dagRuns"), json=body)
        except RequestError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            return self.dag_run(dag_id, run_id)

    def dag_run(self, dag_id: str, run_id: str) -> Json:
        """Return one run."""
        return self._get(_path("dags", dag_id, "dagRuns", run_id))

    def dag_runs(self, dag_id: str) -> list[Json]:
        """Return the runs of a DAG, the oldest first."""
        path = _path("dags", dag_id, "dagRuns")
        return list(self._pages(path, "dag_runs", order_by="run_after"))

    def wait_for_run(self, dag_id: str, run_id: str, timeout: float) -> Json:
        """Return the run once it has ended; raise `AirflowError` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (run := self.dag_run(dag_id, run_id))["state"] not in FINISHED:
            if time.monotonic() > deadline:
                states = {it["task_id"]: it["state"] for it in self.task_instances(dag_id, run_id)}
                message = f"run {run_id!r} of {dag_id!r} is {run['state']} after {timeout:g} s"
                raise AirflowError(f"{message}: {states}")
            time.sleep(0.5)  # between looks, until the deadline: each is work for Airflow
        return run

    def task_instances(self, dag_id: str, run_id: str) -> list[Json]:
        """Return the task instances of a run."""
        path = _path("dags", dag_id, "dagRuns", run_id, "taskInstances")
        return list(self._pages(path, "task_instances"))

    def answer(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        option: str,
        *,
        params_input: Mapping[str, Any] | None = None,
    ) -> Json:
        """Answer a task that waits for a person, such as with `Approve` or `Reject`.

        :param params_input: what is filled into the fields of its form
        """
        body = {"chosen_options": [option], "params_input": dict(params_input or {})}
        run = _path("dags", dag_id, "dagRuns", run_id)
        path = f"{run}{_path('taskInstances', task_id, '-1', 'hitlDetails')}"
        return self._send("PATCH", path, json=body)

    def links(self, dag_id: str, run_id: str, task_id: str) -> dict[str, str | None]:
        """Return the extra links of a task: the name of its button → where it leads."""
        run = _path("dags", dag_id, "dagRuns", run_id)
        found = self._get(f"{run}{_path('taskInstances', task_id, 'links')}")
        return dict(found["extra_links"])

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1) -> str:
        """Return what one attempt of a task logged, one event a line."""
        run = _path("dags", dag_id, "dagRuns", run_id)
        path = f"{run}{_path('taskInstances', task_id, 'logs', str(try_number))}"
        content = self._get(path, full_content=True)["content"]
        return "\n".join(it if isinstance(it, str) else it.get("event", "") for it in content)

    def _pages(self, path: str, key: str, **params: Any) -> Iterator[Json]:
        offset = 0
        while True:
            page = self._get(path, limit=PAGE, offset=offset, **params)
            yield from page[key]
            offset += len(page[key])
            if not page[key] or offset >= page["total_entries"]:
                return

    def _get(self, path: str, **params: Any) -> Json:
        return self._send("GET", path, params=params)

    def _send(self, method: str, path: str, **options: Any) -> Json:
        for attempt in Retrying(
            retry=retry_if_exception_type(httpx.TransportError),
            stop=stop_after_attempt(5),
            wait=wait_exponential(multiplier=0.2, max=3),
            reraise=True,
        ):
            with attempt:
                response = self._http.request(method, path, **options)
        if response.is_error:
            raise RequestError(response)
        return cast("Json", response.json())


def _path(*parts: str) -> str:
    """Join `parts` to a path; a run id may hold `:`, `+` and other reserved characters."""
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def _detail(response: httpx.Response) -> str:
    """Return FastAPI's `detail`, or what else the body says."""
    try:
        body = response.json()
    except ValueError:
        return response.text[:500] or response.reason_phrase
    return str(body.get("detail", body)) if isinstance(body, dict) else str(body)
