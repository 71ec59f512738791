"""What every contract is: frozen, plain, and written down once by digest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from evergreen.store import Store


class Contract(BaseModel):
    """A frozen value that stages exchange."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values only."""
        return self.model_dump(mode="json")


class Reference(Contract):
    """Where a result is written, and what it must hash to."""

    kind: str
    uri: str
    digest: str


class Result(Contract):
    """A stage's result."""

    kind: ClassVar[str]
    model: str

    def save(self, store: Store) -> Reference:
        """Write the result once, under its digest."""
        uri, digest = store.put_document(self.kind, self.to_dict())
        return Reference(kind=self.kind, uri=uri, digest=digest)

    @classmethod
    def load(cls, store: Store, reference: Reference | dict[str, Any]) -> Self:
        """Read a result back and check its digest."""
        ref = Reference.model_validate(reference)
        return cls.model_validate(store.get_document(ref.uri, ref.digest))

    def describe(self) -> Iterator[str]:
        """The lines of the task's closing block: inputs, numbers beside bounds, what is next."""
        yield from ()
