"""A person at a browser: real headless Chromium, logged in to a real Airflow.

Chromium is the system's (Debian: ``apt-get install chromium``); a test that finds none is skipped
and says so.
Whatever a page does that it shouldn't (an error in a script, something that the page's policy
refuses, a dialog) is kept and looked at when the browser is closed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Dialog,
    Frame,
    Page,
    expect,
    sync_playwright,
)

#: Airflow's own: the sandbox of its frame, which is not ours to choose.
NOT_OURS = ("An iframe which has both allow-scripts and allow-same-origin",)
PATIENCE = 30_000.0  # milliseconds
expect.set_options(timeout=PATIENCE)  # its own are 5 s, which a busy machine may need
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Person:
    """Somebody who is logged in.

    :ivar page: their tab.
    :ivar complaints: what the browser complained about.
    """

    url: str
    page: Page
    token: str
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str) -> Page:
        """Open one of our pages by itself."""
        self.page.goto(f"{self.url}/evergreen{path}")
        return self.page

    def open_in_airflow(self, path: str = "") -> Frame:
        """Open one of our pages inside Airflow, and return its frame."""
        self.page.goto(f"{self.url}/plugin/models{path}")
        return self.frame()

    def open_refused(self, path: str) -> Page:
        """Open a page of ours that is answered with an error, of which the browser tells."""
        with self.page.expect_console_message(lambda message: "Failed to load" in message.text):
            page = self.open(path)
        (told,) = self.complaints
        assert "Failed to load" in told
        self.complaints.clear()
        return page

    def frame(self) -> Frame:
        """The frame in which Airflow shows our page."""
        handle = self.page.wait_for_selector('iframe[title="Models"]')
        found = handle.content_frame() if handle else None
        assert found is not None
        found.wait_for_load_state()
        return found

    def violations(self) -> list[str]:
        """What axe-core finds serious or critical on the page as it is now."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{one['id']} ({one['impact']}): {[node['html'][:200] for node in one['nodes'][:3]]}"
            for one in found
            if one["impact"] in {"serious", "critical"}
        ]

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith(NOT_OURS):
            self.complaints.append(f"{message.type}: {message.text[:300]}")

    def _asked(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(
            "no Chromium here: apt-get install chromium"
        )  # CI installs it, and lets none skip
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def person(
    browser: Browser, url: str, name: str, password: str, **context: Any
) -> Iterator[Person]:
    """Somebody logged in; the browser must have had nothing to complain about."""
    said = httpx.post(
        f"{url}/auth/token", json={"username": name, "password": password}, trust_env=False
    )
    token: str = said.raise_for_status().json()["access_token"]
    session = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **context})
    session.set_default_timeout(PATIENCE)
    session.add_cookies([{"name": "_token", "value": token, "url": url}])
    page = session.new_page()
    found = Person(url, page, token)
    page.on("console", found._heard)
    page.on("pageerror", lambda error: found.complaints.append(f"script: {error}"))
    page.on("dialog", found._asked)
    try:
        yield found
    finally:
        session.close()
    assert found.complaints == []
