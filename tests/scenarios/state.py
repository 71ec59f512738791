"""The comparable state of a workspace: everything that a repeated task may neither change nor add to.

`capture` lists it literally: every row, every file. That is what running a finished task again
must leave as it was. A task that was killed and run again has other random ids than one that
was not, and other times, so `canonical` says ids by what they stand for and leaves out what is
measured. Everything left out is named in this module, with its reason.

Only bytes, JSON and SQLite are read here: the process that compares states also forks, so it must
not start a library's threads.

Longer than most: each exemption stands with its reason, in the one place that makes them.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sqlite3
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

Row = dict[str, Any]

#: Left out of every comparison: the database's clock, which no decision reads.
CLOCK = frozenset({"recorded_at"})
#: Not the task's doing: which schema a database has, and locks.
IGNORED_TABLES = frozenset({"alembic_version", "sqlite_sequence"})
#: MLflow's and Feast's own clocks, and the random name of a link between a run and its model.
OTHER_CLOCKS = frozenset(
    {
        "start_time",
        "end_time",
        "creation_time",
        "last_updated_time",
        "deleted_time",
        "creation_timestamp_ms",
        "last_updated_timestamp_ms",
        "created_ts",
        "input_uuid",
    }
)
#: Seconds that a fit took: measured. That there is one such value, once, is compared.
MEASURED_METRICS = frozenset({"fit_seconds", "refit_seconds"})
#: What the infrastructure check measures; the document's other keys are compared.
MEASURED_KEYS = frozenset({"latency_ms", "memory_mb", "load_seconds"})
#: Lines of a logged model's MLmodel: MLflow's clock, and the size of a zip that holds addresses.
MEASURED_LINES = re.compile(r"^(utc_time_created|model_size_bytes):.*$", re.MULTILINE)
#: When Feast's registry and what is in it were written, and the random name of that version.
REGISTRY_TIMES = frozenset(
    {"created_timestamp", "last_updated_timestamp", "last_updated", "version_id"}
)
#: What a killed copy leaves in a local artifact folder; MLflow itself lists no such file.
HIDDEN_BY_MLFLOW = ".artifact.uploading."
#: Evidently's pages hold random ids: that there is the page, under its inputs' digest, is compared.
RANDOM_PAGES = "store/reports/drift/"
#: Tables named by a digest of model URIs, which hold random ids.
NAMED_BY_IDS = "store/tables/evaluation/"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DATABASE = re.compile(r"\.db(-wal|-shm|-journal)?$")


@dataclass(frozen=True)
class State:
    """The rows and files of a workspace, as they are.

    :ivar rows: database → table → rows.
    :ivar files: path below the home folder → content.
    """

    rows: Mapping[str, Mapping[str, list[Row]]]
    files: Mapping[str, bytes] = field(repr=False)

    def literal(self, *values: Any) -> list[str]:
        """One line a row and one a file; equal when nothing at all was changed.

        :param values: further JSON values to say, like a task's result.
        """
        rows = (f"{base}.{name}: {_text(row)}" for base, name, row in self._all_rows())
        files = (f"{path}: {_sha(content)}" for path, content in self.files.items())
        return sorted([*rows, *files, *(f"result: {_text(value)}" for value in values)])

    def canonical(self, *values: Any) -> list[str]:
        """The same with ids said by what they stand for, and without what is measured.

        :param values: as in `literal`.
        """
        names = self._names()
        rows = (
            f"{base}.{name}: {_said(_text(_unmeasured(row)), names)}"
            for base, name, row in self._all_rows()
            if not self._withdrawn(row)
        )
        files = (
            f"{_said(path, names)}: {_sha(self._content(path, names))}"
            for path in self.files
            if HIDDEN_BY_MLFLOW not in path
        )
        results = (f"result: {_said(_text(value), names)}" for value in values)
        return sorted([*rows, *files, *results])

    def _all_rows(self) -> Iterator[tuple[str, str, Row]]:
        for base, tables in self.rows.items():
            for name, rows in tables.items():
                yield from ((base, name, row) for row in rows)

    def _withdrawn(self, row: Row) -> bool:
        """MLflow keeps a mark of what was deleted, which no search finds. Its files must be gone."""
        return any(row.get(key) in self._deleted for key in ("run_uuid", "model_id"))

    @cached_property
    def _deleted(self) -> set[str]:
        mlflow = self.rows.get("mlflow", {})
        rows = (*mlflow.get("runs", ()), *mlflow.get("logged_models", ()))
        return {_id(row) for row in rows if row["lifecycle_stage"] == "deleted"}

    def _names(self) -> dict[str, str]:
        """Random ids, and the digests of what holds them → what they stand for."""
        names = self._ids
        documents = [path for path in self.files if _SHA256.fullmatch(Path(path).stem)]
        while True:
            found = dict(self._ids)
            for path in documents:
                content = self._content(path, names)
                if path.startswith(NAMED_BY_IDS) or content != self._plain(path):
                    found[Path(path).stem] = f"<{_sha(content)}>"
            if found == names:
                return names
            names = found

    @cached_property
    def _ids(self) -> dict[str, str]:
        mlflow, deleted = self.rows.get("mlflow", {}), self._deleted
        tags = {
            row["run_uuid"]: row["value"]
            for row in mlflow.get("tags", ())
            if row["key"] == "evergreen.run_key"
        }
        runs = {run: f"<run {key}>" for run, key in tags.items() if run not in deleted}
        models = {
            row["model_id"]: f"<{row['name']} of {tags.get(row['source_run_id'])}>"
            for row in mlflow.get("logged_models", ())
            if row["model_id"] not in deleted
        }
        # The digest of a model's files, which hold ids and clocks: it stands for that model.
        logged = {
            row["tag_value"]: f"<files of {models[row['model_id']]}>"
            for row in mlflow.get("logged_model_tags", ())
            if row["tag_key"] == "evergreen.artifact" and row["model_id"] in models
        }
        registered = {
            row["value"]: f"<files of {row['name']} {row['version']}>"
            for row in mlflow.get("model_version_tags", ())
            if row["key"] == "evergreen.artifact"
        }
        return runs | models | logged | registered

    def _plain(self, path: str) -> bytes:
        return (
            _text(json.loads(self.files[path])).encode()
            if path.endswith(".json")
            else self.files[path]
        )

    def _content(self, path: str, names: Mapping[str, str]) -> bytes:
        """A file's content, comparable between two workspaces."""
        content = self.files[path]
        if path.startswith(RANDOM_PAGES):
            return b"a page"
        if path.endswith(".json"):
            return _said(_text(_without(json.loads(content), MEASURED_KEYS)), names).encode()
        for ending, comparable in _COMPARABLE.items():
            if path.endswith(ending):
                content = comparable(content)
        return content if content.startswith(b"PAR1") else _said_bytes(content, names)


def capture(home: Path) -> State:
    """Read a workspace in which no process is at work."""
    databases = {path.relative_to(home).as_posix(): path for path in home.rglob("*.db")}
    rows = {
        name.removesuffix(".db"): _tables(path)
        for name, path in databases.items()
        if _is_sqlite(path)
    }
    files = {
        path.relative_to(home).as_posix(): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and not (_DATABASE.search(path.name) and _is_sqlite_part(path))
    }
    return State(rows=rows, files=files)


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(15) == b"SQLite format 3"


def _is_sqlite_part(path: Path) -> bool:
    return not path.name.endswith(".db") or _is_sqlite(path)


def _tables(path: Path) -> dict[str, list[Row]]:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        names = [
            n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        return {
            name: [
                {k: row[k] for k in row.keys() if k not in CLOCK}  # noqa: SIM118 - a Row isn't a dict
                for row in connection.execute(f'SELECT * FROM "{name}"')
            ]
            for name in sorted(set(names) - IGNORED_TABLES)
        }


def _unmeasured(row: Row) -> Row:
    kept = {key: value for key, value in row.items() if key not in OTHER_CLOCKS}
    if row.get("key") in MEASURED_METRICS and "value" in row:
        kept["value"] = "measured"
    return kept


def _id(row: Row) -> str:
    return str(row.get("model_id") or row["run_uuid"])


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=_hex)


def _hex(value: Any) -> str:
    return bytes(value).hex()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _said(text: str, names: Mapping[str, str]) -> str:
    for known, name in names.items():
        text = text.replace(known, name)
    return text


def _said_bytes(content: bytes, names: Mapping[str, str]) -> bytes:
    for known, name in names.items():
        content = content.replace(known.encode(), name.encode())
    return content


def _without(value: Any, keys: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, keys) for k, v in value.items() if k not in keys}
    return [_without(item, keys) for item in value] if isinstance(value, list) else value


def _mlmodel(content: bytes) -> bytes:
    return MEASURED_LINES.sub("", content.decode()).encode()


def _skops(content: bytes) -> bytes:
    """A fitted model's zip without its times; arrays by content, objects by order, not by address."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    schema = parts.pop("schema.json").decode()
    for name, part in parts.items():
        schema = schema.replace(name, _sha(part))
    order: dict[str, int] = {}
    return re.sub(
        r'("__id__": )(\d+)', lambda m: f"{m[1]}{order.setdefault(m[2], len(order))}", schema
    ).encode()


def _registry(content: bytes) -> bytes:
    """Feast's registry without the times at which it was written."""
    from feast.protos.feast.core.Registry_pb2 import Registry

    registry = Registry.FromString(content)
    _forget_times(registry)
    return bytes(registry.SerializeToString(deterministic=True))


def _forget_times(message: Any) -> None:
    for description, value in message.ListFields():
        if description.name in REGISTRY_TIMES:
            message.ClearField(description.name)
        elif description.message_type:
            for each in [value] if hasattr(value, "ListFields") else value:
                if hasattr(each, "ListFields"):  # a map's keys are text
                    _forget_times(each)


_COMPARABLE: dict[str, Callable[[bytes], bytes]] = {
    "/MLmodel": _mlmodel,
    ".skops": _skops,
    "/registry.db": _registry,
}
