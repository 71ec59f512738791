"""The pages' own files: style, scripts, and plotly.js from the installed package."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

from fastapi import APIRouter, Request, Response

router = APIRouter()
OURS = {"style.css": "text/css", "theme.js": "text/javascript", "pages.js": "text/javascript"}
PLOTLY = "plotly.min.js"
Name = Literal["style.css", "theme.js", "pages.js", "plotly.min.js"]


@router.get("/assets/{name}")
def asset(request: Request, name: Name) -> Response:
    """One of a closed list of files; the browser keeps it and asks whether it has changed."""
    content, tag = _content(name)
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=OURS.get(name, "text/javascript"), headers=headers)


@cache
def _content(name: str) -> tuple[bytes, str]:
    import hashlib

    place = (
        files("plotly") / "package_data" / name
        if name == PLOTLY
        else files("evergreen.ui") / "assets" / name
    )
    content = place.read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
