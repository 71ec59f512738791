"""Tell people, over the channels a model declares; a dead channel is an error in the log, no more.

The messages go through Airflow's own SMTP and Apprise providers and their Connections. Each
channel is tried by itself and for at most `PATIENCE` seconds, whatever its Connection allows:
by default an ``smtp`` one may take 30 s six times (``timeout``, ``retry_limit`` in its extra),
an ``apprise`` one 4 s to connect and 4 s to be answered (``cto``, ``rto`` in its URLs).

A task that is killed and tried again tells again: a message may come twice.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from airflow.sdk import BaseNotifier

from evergreen.declaration import Declaration
from evergreen.declaration.watching import Apprise, Event, Smtp
from evergreen.errors import DeclarationError, UnavailableError

if TYPE_CHECKING:
    from airflow.sdk import Context

PATIENCE = 60.0
LONGEST_SUBJECT = 200
SHORTEST_SECRET = 8  # shorter parts of a URL are words like `slack`, or ports


@dataclass(frozen=True)
class Message:
    """What is sent: a subject of one line, plain text, and where to click."""

    subject: str
    text: str
    link: str | None = None

    @property
    def plain(self) -> str:
        """For chats and pagers."""
        return f"{self.text}\n\n{self.link}" if self.link else self.text

    @property
    def page(self) -> str:
        """For mails: the same, so that nothing in it is taken for HTML."""
        lines = "<br>\n".join(html.escape(line) for line in self.text.splitlines())
        link = html.escape(self.link or "")
        return f"<p>{lines}</p>" + (f'\n<p><a href="{link}">{link}</a></p>' if link else "")


class ModelNotifier(BaseNotifier):
    """Tell the channels in ``escalation.notify`` of a model that want to hear of an event.

    Works as a callback of a task or DAG, in ``HITLOperator(notifiers=…)``, and by ``notify``,
    which takes the texts as they are. Never raises because of a channel.

    :param model: the model's declaration.
    :param event: what happened; a channel's ``on`` says which events it wants.
    :param title: one line. (templated)
    :param body: lines of plain text. (templated)
    :param priority: like ``P1``; left out when empty. (templated)
    """

    template_fields: Sequence[str] = ("title", "body", "priority")

    def __init__(
        self,
        *,
        model: Declaration,
        event: Event,
        title: str,
        body: str,
        priority: str = "",
        context: Context | None = None,
    ) -> None:
        super().__init__(context)
        self.model = model
        self.event = event
        self.title = title
        self.body = body
        self.priority = priority

    def __call__(self, *args: Any) -> None:
        """Render and notify. On a copy: tasks may share a notifier, and rendering is in place."""
        BaseNotifier.__call__(copy(self), *args)

    def notify(self, context: Context) -> None:
        """Send one message by each channel that wants this event, one channel after the other."""
        message = self.message(context)
        for channel in self.model.escalation.notify:
            if self.event not in channel.on:
                continue
            name = f"the {channel.channel} Connection {channel.connection!r}"
            problem = _tried(_SENDERS[type(channel)], channel, message)
            if problem is None:
                self.log.info("told by %s: %s", name, message.subject)
                continue
            self.log.error(
                "not told by %s: %s: %s. Nothing else failed because of it; no other try is made. "
                "%s The channel is declared in escalation.notify of %s.",
                name, message.subject, problem, _ADVICE[channel.channel], self.model.name,
            )  # fmt: skip

    def message(self, context: Context) -> Message:
        """What is sent."""
        words = f"[evergreen] {self.priority} {self.model.name}: {self.title}".split()
        subject = "".join(c for c in " ".join(words) if c.isprintable())
        shortened = subject[: LONGEST_SUBJECT - 1] + "…"
        return Message(
            subject=subject if len(subject) <= LONGEST_SUBJECT else shortened,
            text=str(self.body).encode(errors="backslashreplace").decode(),  # half a surrogate pair
            link=_link(context, self.event),
        )


_ADVICE = {
    "smtp": "Look at its host, port, login, and in its extra disable_ssl, disable_tls, from_email.",
    "apprise": "Look at `config` in its extra: path and tag. Apprise's own lines are above.",
}


def _tried(send: Callable[[Any, Message], None], channel: Any, message: Message) -> str | None:
    """Send within `PATIENCE`, in a thread that can be left behind; what went wrong, or None."""
    from airflow.providers.common.compat.sdk import redact

    outcome: list[str | None] = []

    def attempt() -> None:
        try:
            send(channel, message)
            outcome.append(None)
        except Exception as error:  # noqa: BLE001 - a channel fails in its vendor's ways; none may fail a pipeline
            outcome.append(f"{type(error).__name__}: {redact(str(error))}")

    thread = Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return outcome[0] if outcome else f"no end within {PATIENCE:g} s, it may still arrive"


def _mail(channel: Smtp, message: Message) -> None:
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    SmtpNotifier(
        smtp_conn_id=channel.connection,
        to=list(channel.to),
        from_email=channel.sender,
        subject=message.subject,
        html_content=message.page,
    ).notify({})  # not called: that would take the text for a template


def _apprise(channel: Apprise, message: Message) -> None:
    """Send as Airflow's AppriseNotifier does, but look at what Apprise says of it.

    The notifier drops the result, and nothing is raised when nobody was reached.
    """
    from airflow.providers.apprise.hooks.apprise import AppriseHook
    from airflow.providers.common.compat.sdk import mask_secret
    from apprise import Apprise as Services

    hook = AppriseHook(apprise_conn_id=channel.connection)
    connection = hook.get_connection(channel.connection)
    config = hook.get_config_from_conn(connection)
    for each in config if isinstance(config, list) else [config]:
        # Apprise logs parts of a URL that it can't read, and any part may be a token.
        for part in re.split(r"[\s,/:@?&=]+", unquote(each["path"])):
            if len(part) >= SHORTEST_SECRET and part not in message.subject:
                mask_secret(part)
    services = Services()
    hook.set_config_from_conn(connection, services)
    if not list(services.find(tag=channel.tag)):
        raise DeclarationError(
            f"{len(services)} usable services, none with the tag {channel.tag!r}; "
            "write `all`, or a tag of the Connection"
        )
    if not services.notify(title=message.subject, body=message.plain, tag=channel.tag):
        raise UnavailableError("a service refused the message or was not reached")


_SENDERS: dict[type, Callable[[Any, Message], None]] = {Smtp: _mail, Apprise: _apprise}


def _link(context: Context, event: Event) -> str | None:
    """The page of the task: its log, or its form while it waits for a person."""
    from airflow.providers.standard.operators.hitl import HITLOperator

    log: str | None = getattr(context.get("ti"), "log_url", None)
    if log and event == "escalated" and isinstance(context.get("task"), HITLOperator):
        return f"{log.partition('?')[0]}/required_actions"
    return log
