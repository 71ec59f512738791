"""Templates: everything that people or data wrote is escaped; numbers and times read the same
everywhere."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

#: Where the plugin mounts the pages.
PREFIX = "/evergreen"  # as in `evergreen.plugin`


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a template."""
    root = request.scope.get("root_path", "").removesuffix("/")
    html = _environment().get_template(template)
    text = html.render(root=root, airflow=root.removesuffix(PREFIX), **values)
    return HTMLResponse(text, status_code=status)


def number(value: Any, digits: int = 4) -> str:
    """A metric's value; a dash for none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def share(value: float | None) -> str:
    """A share as per cent."""
    return "–" if value is None else f"{value:.0%}"


def moment(
    value: datetime | str | None, *, short: bool = False, hour: bool = False
) -> Markup | str:
    """A time in UTC, with the whole of it for machines; midnight is a day unless ``hour``."""
    if value is None:
        return "–"
    at = datetime.fromisoformat(value) if isinstance(value, str) else value
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    day = short or not (hour or at.hour or at.minute)
    text = at.strftime("%Y-%m-%d" if day else "%Y-%m-%d %H:%M")
    return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), text)


def clock(value: datetime | str | None) -> Markup | str:
    """A time of the wall's clock in UTC, with its hour at midnight too."""
    return moment(value, hour=True)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("evergreen.ui"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number, "share": share, "moment": moment, "clock": clock,
        "part": lambda text: quote(text, safe=""),
        "path": lambda text: quote(text, safe="/"),
        "short": lambda text: text[:12] if text else "–",
    }  # fmt: skip
    return environment
