"""The OpenAPI document is kept: whatever it allows is answered, whatever it forbids is refused.

Schemathesis makes both kinds of requests from the document itself, and holds every answer
against it with all its checks: status, content type, headers, schema, methods, authentication.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema

from tests.unit.serving.conftest import Open, Site

#: Small and without gaps: keys that nothing is online for are answered with what is declared.
SECTIONS: dict[str, Any] = {"serving": {"online": {"fallback": "defaults"}, "limits": {"rows": 20}}}
#: Its own list, and 408 and 413: a refusal that says more than 400.
REFUSALS = [400, 401, 404, 405, 408, 413, 415, 429]


@dataclass
class Found:
    """What a run of Schemathesis met.

    :ivar broken: promises of the document that weren't kept, or requests that couldn't be made.
    :ivar answers: (operation, content type of the request) → HTTP status → how often.
    """

    broken: list[str] = field(default_factory=list)
    answers: dict[tuple[str, str], Counter[int]] = field(default_factory=dict)

    def note(self, scenario: events.ScenarioFinished) -> None:
        """Keep what one of its scenarios met."""
        recorder = scenario.recorder
        for case, interaction in recorder.interactions.items():
            if interaction.response is None:
                continue
            kind = interaction.request.headers.get("Content-Type", [""])[0]
            code = interaction.response.status_code
            self.answers.setdefault((str(scenario.label), kind), Counter())[code] += 1
            for check in recorder.checks.get(case, []):
                if check.status is Status.FAILURE and check.failure_info is not None:
                    said = check.failure_info.failure.message
                    sent = interaction.request.body
                    self.broken.append(f"{scenario.label} {check.name}: {said}\n{sent!r}: {code}")


def holding(site: Site, *, examples: int, key: str | None = None) -> Found:
    """Let Schemathesis ask everything that the document describes."""
    content: dict[str, Any] = {
        "seed": 20130101,
        "generation": {"max-examples": examples, "deterministic": True, "database": "none"},
        "checks": {"negative_data_rejection": {"expected-statuses": REFUSALS}},
    }
    if key is not None:
        schemes = {"key": {"api_key": key}, "bearer": {"bearer": key}}
        content["auth"] = {"openapi": schemes}
    document = schemathesis.openapi.from_asgi(
        "/openapi.json",
        site.app,
        config=SchemathesisConfig.from_dict(content),
        headers={} if key is None else {"X-API-Key": key},
    )
    found = Found()
    for event in from_schema(document).execute():
        if isinstance(event, events.ScenarioFinished):
            found.note(event)
        elif isinstance(event, events.NonFatalError | events.FatalError):
            found.broken.append(repr(event))
    return found


@pytest.fixture(scope="module")
def site(open_site: Open) -> Site:
    return open_site(**SECTIONS)


def test_the_document_is_kept(site: Site) -> None:
    found = holding(site, examples=30)
    assert found.broken == []
    for route in ("/predict", "/invocations", "/models/example/predict"):
        asked = found.answers[f"POST {route}", "application/json"]
        assert min(asked[200], asked[400], asked[413]) > 0  # both kinds were made
        assert asked[405] > 0
    assert found.answers["POST /invocations", "text/csv"][200] > 0
    for route in ("/ping", "/version", "/metrics"):
        assert found.answers[f"GET {route}", ""][200] > 0


def test_it_is_kept_behind_a_key(open_site: Open, site: Site) -> None:
    found = holding(open_site(site.served, key="a key"), examples=8, key="a key")
    assert found.broken == []
    asked = found.answers["POST /predict", "application/json"]
    assert min(asked[200], asked[400], asked[401]) > 0


def test_it_is_kept_for_several_classes(open_site: Open) -> None:
    found = holding(open_site(task="multiclass_classification", **SECTIONS), examples=8)
    assert found.broken == []
    assert found.answers["POST /predict", "application/json"][200] > 0
