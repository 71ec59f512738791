"""Why a request isn't answered: a status, a word for programs, the place, a sentence for people."""

from __future__ import annotations

from typing import Any

import msgspec

from evergreen.errors import EvergreenError

#: Integers of 64 bits lie below it, and not below its negative.
LARGEST_INTEGER = 2**63


class RequestError(EvergreenError):
    """A request that isn't answered with predictions.

    :ivar status: the HTTP status.
    :ivar code: the reason as one word, for programs.
    :ivar column: the column it is about, if any.
    :ivar row: the row it is about, if any, counted from 0.
    :ivar retry_after: whole seconds after which it may be asked again.
    """

    def __init__(
        self,
        status: int,
        code: str,
        reason: str,
        *,
        column: str | None = None,
        row: int | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(reason)
        self.status, self.code, self.reason = status, code, reason
        self.column, self.row, self.retry_after = column, row, retry_after

    def to_dict(self) -> dict[str, Any]:
        """The body of the answer."""
        found = {"code": self.code, "column": self.column, "row": self.row, "reason": self.reason}
        return {"error": found}


def bad(code: str, reason: str, column: str | None = None, row: int | None = None) -> RequestError:
    """400: what was asked can't be meant, here."""
    return RequestError(400, code, reason, column=column, row=row)


def kind(value: Any) -> str:
    """A JSON value's type in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def said(value: Any) -> str:
    """A value as a message may repeat it: short, and what JSON calls it."""
    if isinstance(value, str):
        return short(value)
    if isinstance(value, dict | list) or (isinstance(value, int) and abs(value) > LARGEST_INTEGER):
        return kind(value)
    return msgspec.json.encode(value).decode()


def short(text: str) -> str:
    """Text as a message may repeat it."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
