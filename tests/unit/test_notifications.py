"""Messages over a real SMTP server and a real webhook; and what a dead one changes: the log."""

from __future__ import annotations

import html
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event as Signal
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiosmtpd.controller import Controller
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from evergreen import notifications
from evergreen.notifications import LONGEST_SUBJECT, Message, ModelNotifier
from evergreen.standalone import free_port
from tests.builders import declare

HOST = "127.0.0.1"
HOSTILE = "<script>alert('x')</script> & {{ 7 * 191 }} {% raise %}"


@dataclass
class Mailbox:
    """An SMTP server's handler that keeps what came."""

    port: int
    mails: list[tuple[list[str], EmailMessage]] = field(default_factory=list)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        mail = message_from_bytes(envelope.content, policy=policy.default)
        self.mails.append((envelope.rcpt_tos, cast("EmailMessage", mail)))
        return "250 OK"

    def page(self) -> str:
        """The only mail's HTML."""
        ((_, mail),) = self.mails
        body = mail.get_body(("html",))
        assert body is not None
        return str(body.get_content())


@dataclass
class Receiver:
    """A webhook: ``/ok`` takes, ``/broken`` answers 500, ``/hang`` doesn't answer."""

    port: int
    posts: list[tuple[str, dict[str, Any]]]

    def url(self, path: str = "ok", **options: Any) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"json://{HOST}:{self.port}/{path}" + (f"?{query}" if query else "")


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    """A mail server, and the Connection ``mail`` to it."""
    handler = Mailbox(free_port())
    server = Controller(handler, hostname=HOST, port=handler.port)
    server.start()
    connect_mail(monkeypatch, handler.port)
    yield handler
    server.stop()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook."""
    posts: list[tuple[str, dict[str, Any]]] = []
    over = Signal()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            posts.append((self.path, content))
            if self.path.startswith("/hang"):
                over.wait(30)
                return
            self.send_response(500 if self.path.startswith("/broken") else 200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
            pass

    server = ThreadingHTTPServer((HOST, 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield Receiver(server.server_port, posts)
    over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.create_server((HOST, 0), backlog=8) as server:
        yield int(server.getsockname()[1])


def connect_mail(monkeypatch: pytest.MonkeyPatch, port: int, **extra: Any) -> None:
    """The Connection ``mail``: plain SMTP on loopback."""
    given = {"disable_ssl": True, "disable_tls": True, "from_email": "evergreen@example.com"}
    monkeypatch.setenv(
        "AIRFLOW_CONN_MAIL",
        json.dumps({"conn_type": "smtp", "host": HOST, "port": port, "extra": {**given, **extra}}),
    )


def connect_chat(monkeypatch: pytest.MonkeyPatch, *config: dict[str, str]) -> None:
    """The Connection ``chat``: services of Apprise."""
    extra = {"config": [*config]}
    monkeypatch.setenv("AIRFLOW_CONN_CHAT", json.dumps({"conn_type": "apprise", "extra": extra}))


MAIL = {"channel": "smtp", "connection": "mail", "to": ["ops@example.com", "boss@example.com"]}
CHAT = {"channel": "apprise", "connection": "chat"}


def notifier(folder: Path, *channels: dict[str, Any], **given: Any) -> ModelNotifier:
    """A notifier of a model with these channels."""
    model = declare(folder, escalation={"notify": [*channels]})
    texts = {"event": "escalated", "title": "it has stopped", "body": "why\nand what now"}
    return ModelNotifier(model=model, **{**texts, "priority": "P1", **given})


def sent(notifier: ModelNotifier, **context: Any) -> list[tuple[str, str]]:
    """Call it as Airflow does; what it logged: level and text."""
    with capture_logs() as entries:
        notifier(context)
    return [(entry["log_level"], str(entry["event"])) for entry in entries]


def test_a_mail_and_a_webhook_get_one_message_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mailbox: Mailbox, receiver: Receiver
) -> None:
    connect_chat(monkeypatch, {"path": receiver.url(), "tag": "ops"}, {"path": "json://nobody"})
    ti = SimpleNamespace(log_url="https://airflow.example.com/log?try_number=1&x=<y>")
    logged = sent(notifier(tmp_path, MAIL, {**CHAT, "tag": "ops"}), ti=ti)
    assert logged == [
        ("info", f"told by {by}: [evergreen] P1 example: it has stopped")
        for by in ("the smtp Connection 'mail'", "the apprise Connection 'chat'")
    ]
    ((recipients, mail),) = mailbox.mails
    assert recipients == ["ops@example.com", "boss@example.com"]
    assert (mail["subject"], mail["from"]) == (
        "[evergreen] P1 example: it has stopped",
        "evergreen@example.com",
    )
    link = html.escape(ti.log_url)
    assert mailbox.page().split() == (
        f'<p>why<br> and what now</p> <p><a href="{link}">{link}</a></p>'.split()
    )
    ((_, post),) = receiver.posts
    assert post["title"] == "[evergreen] P1 example: it has stopped"
    assert post["message"] == f"why\nand what now\n\n{ti.log_url}"


def test_a_sender_of_its_own(tmp_path: Path, mailbox: Mailbox) -> None:
    sent(notifier(tmp_path, {**MAIL, "sender": "ml@example.com"}))
    assert mailbox.mails[0][1]["from"] == "ml@example.com"


@pytest.mark.parametrize("event", ["escalated", "answered", "promoted", "refused", "failed"])
def test_a_channel_hears_only_what_it_asked_for(
    tmp_path: Path, mailbox: Mailbox, event: str
) -> None:
    wants = {**MAIL, "to": ["all@example.com"], "on": ["answered", "promoted"]}
    logged = sent(notifier(tmp_path, MAIL, wants, event=event))
    told = [recipients[0] for recipients, _ in mailbox.mails]
    assert told == ["all@example.com" if event in wants["on"] else "ops@example.com"]
    assert len(logged) == 1


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("refused", "UnavailableError: a service refused the message or was not reached"),
        ("broken", "UnavailableError: a service refused the message or was not reached"),
        ("hang", "UnavailableError: a service refused the message or was not reached"),
        ("tag", "none with the tag 'ops'"),
        ("url", "0 usable services"),
        ("config", "KeyError: 'config'"),
        ("missing", "The conn_id `chat` isn't defined"),
    ],
)
def test_a_dead_webhook_is_an_error_in_the_log_and_the_next_channel_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mailbox: Mailbox, receiver: Receiver,
    path: str, reason: str,
) -> None:  # fmt: skip
    config = {"path": receiver.url(path, rto=1), "tag": "ops"}
    if path == "refused":
        config["path"] = f"json://{HOST}:{free_port()}"
    if path == "tag":
        config["tag"] = "others"
    if path == "url":
        config["path"] = "http://not-of-apprise.example.com"
    if path == "config":
        monkeypatch.setenv("AIRFLOW_CONN_CHAT", '{"conn_type": "apprise"}')
    elif path != "missing":
        connect_chat(monkeypatch, config)
    (dead, _), (alive, _) = logged = sent(notifier(tmp_path, {**CHAT, "tag": "ops"}, MAIL))
    assert (dead, alive, len(mailbox.mails)) == ("error", "info", 1)
    text = logged[0][1]
    assert text.startswith("not told by the apprise Connection 'chat': [evergreen] P1 example")
    assert reason in text
    assert "Look at `config` in its extra" in text
    assert text.endswith("The channel is declared in escalation.notify of example.")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("refused", "ConnectionRefusedError: [Errno 111] Connection refused"),
        ("silent", "Unable to connect to smtp server"),
        ("sender", "You should provide `from_email`"),
        ("missing", "SMTP connection is not found"),
    ],
)
def test_a_dead_mail_server_is_an_error_in_the_log_and_the_next_channel_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mailbox: Mailbox, receiver: Receiver,
    silent: int, state: str, reason: str,
) -> None:  # fmt: skip
    connect_chat(monkeypatch, {"path": receiver.url()})
    if state == "refused":
        connect_mail(monkeypatch, free_port())
    elif state == "silent":
        connect_mail(monkeypatch, silent, timeout=1, retry_limit=0)
    elif state == "sender":
        connect_mail(monkeypatch, mailbox.port, from_email=None)
    else:
        monkeypatch.delenv("AIRFLOW_CONN_MAIL")
    (dead, text), (alive, _) = sent(notifier(tmp_path, MAIL, CHAT))
    assert (dead, alive, len(receiver.posts), mailbox.mails) == ("error", "info", 1, [])
    assert text.startswith("not told by the smtp Connection 'mail': [evergreen] P1 example")
    assert reason in text
    assert "Look at its host, port, login" in text


def test_a_channel_that_hangs_costs_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Receiver, silent: int
) -> None:
    monkeypatch.setattr(notifications, "PATIENCE", 0.5)
    connect_mail(monkeypatch, silent, timeout=3)
    connect_chat(monkeypatch, {"path": receiver.url("hang", rto=3)})
    began = time.monotonic()
    logged = sent(notifier(tmp_path, MAIL, CHAT))
    assert time.monotonic() - began < 3
    assert [level for level, _ in logged] == ["error", "error"]
    assert all("no end within 0.5 s" in text for _, text in logged)


def test_no_secret_of_a_connection_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Apprise itself logs parts of a URL that it can't read: Airflow is told to mask them."""
    from airflow.providers.common.compat.sdk import redact

    monkeypatch.setenv(
        "AIRFLOW_CONN_MAIL", f"smtp://me:hunter2hunter2@{HOST}:{free_port()}/?disable_ssl=true"
    )
    connect_chat(monkeypatch, {"path": "hooks://token-of-ours, slack://token-of-yours"})
    with caplog.at_level(logging.INFO, logger="apprise"):
        logged = sent(notifier(tmp_path, MAIL, CHAT))
    assert [level for level, _ in logged] == ["error", "error"]
    assert "(token-of-yours) was specified" in caplog.text
    said = str(redact(caplog.text)) + "".join(text for _, text in logged)
    assert not {word for word in ("token-of-ours", "token-of-yours", "hunter2") if word in said}


def test_hostile_text_stays_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mailbox: Mailbox, receiver: Receiver
) -> None:
    """Of a model, a person or an exception: no HTML, no second header, no template of its own."""
    connect_chat(monkeypatch, {"path": receiver.url()})
    task = SimpleNamespace(title=f"one\r\nBcc: eve@example.com\n{HOSTILE}", body=HOSTILE)
    sent(
        notifier(tmp_path, MAIL, CHAT, title="{{ task.title }}", body="{{ task.body }}"), task=task
    )
    ((recipients, mail),) = mailbox.mails
    assert recipients == ["ops@example.com", "boss@example.com"]
    assert mail["bcc"] is None
    assert mail["subject"] == f"[evergreen] P1 example: one Bcc: eve@example.com {HOSTILE}"
    assert mailbox.page().strip() == f"<p>{html.escape(HOSTILE)}</p>"
    assert receiver.posts[0][1]["message"] == HOSTILE


def test_texts_are_templates_and_a_notifier_can_be_shared(tmp_path: Path, mailbox: Mailbox) -> None:
    shared = notifier(tmp_path, MAIL, title="{{ ti.task_id }} failed", body="{{ exception }}")
    for name in ("train", "gate"):
        sent(shared, ti=SimpleNamespace(task_id=name), exception=ValueError(f"in {name}"))
    assert [mail["subject"] for _, mail in mailbox.mails] == [
        "[evergreen] P1 example: train failed",
        "[evergreen] P1 example: gate failed",
    ]


def test_a_model_without_channels_tells_nobody(tmp_path: Path) -> None:
    assert sent(notifier(tmp_path)) == []


def test_who_is_asked_is_led_to_the_form_and_others_to_the_log(tmp_path: Path) -> None:
    from evergreen.operators import ArbitrateOperator, EscalateOperator

    model = declare(tmp_path)
    asking = EscalateOperator(task_id="escalate", model=model)
    ti = SimpleNamespace(log_url="https://a.example/x/dags/d/runs/r%3A/tasks/t?try_number=1")

    def link(event: str, task: Any) -> str | None:
        context = cast("Any", {"ti": ti, "task": task})
        return notifier(tmp_path, event=event).message(context).link

    assert link("escalated", asking) == (
        "https://a.example/x/dags/d/runs/r%3A/tasks/t/required_actions"
    )
    assert link("answered", asking) == ti.log_url
    assert link("escalated", ArbitrateOperator(task_id="arbitrate", model=model)) == ti.log_url
    assert notifier(tmp_path).message(cast("Any", {})).link is None


@given(title=st.text(max_size=300), body=st.text(max_size=300))
@example(title="x" * 300, body="")
def test_any_text_makes_one_subject_line_and_harmless_html(title: str, body: str) -> None:
    subject = ModelNotifier(
        model=declare(Path()), event="failed", title=title, body=body
    ).message(cast("Any", {})).subject  # fmt: skip
    assert subject.startswith("[evergreen] example:")
    assert len(subject) <= LONGEST_SUBJECT
    assert subject.isprintable()
    page = Message(subject, body).page
    bare = page.removeprefix("<p>").removesuffix("</p>").replace("<br>\n", "\n")
    assert not {"<", ">"} & {*bare}
    assert html.unescape(bare) == "\n".join(body.splitlines())


def test_a_dag_file_pays_for_no_channel(tmp_path: Path) -> None:
    code = (
        "import sys, evergreen.notifications\n"
        "heavy = ('apprise', 'aiosmtplib', 'airflow.providers.smtp.hooks.smtp')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "[]"
