"""Validate: is a snapshot's data fit to learn from, or to be scored?

Three kinds of check: built-in ones of structure, the model's own Great Expectations suite, and a
comparison of columns with what the champion learnt from. A partition's own checks depend on its
content alone and are kept under a key of everything they depend on, so that a retrain pays for
the new partition only. Bad data is a result, never an exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html import escape
from importlib.metadata import version
from itertools import chain
from typing import TYPE_CHECKING

from pydantic import AwareDatetime

from evergreen.declaration import Declaration
from evergreen.errors import PartitionError
from evergreen.lifecycle.contracts import Check, Contract, Partition, Snapshot, ValidationReport
from evergreen.lifecycle.expectations import (
    Finding,
    Severity,
    Suite,
    build_suite,
    read_suite,
    run_suite,
    share,
)
from evergreen.lifecycle.label_checks import WHOLE, label_checks, plain
from evergreen.lifecycle.rows import (
    LABELS,
    MAIN,
    label_timestamps,
    labels_apart,
    read_file,
    read_raw,
    required_columns,
    time_columns,
)
from evergreen.lifecycle.structure import label_key_findings, structural_findings
from evergreen.store import Store, digest_of
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

CHECKS_VERSION = 1
"""Raise it when a built-in check changes: results kept under the old number are not found again."""


class PartitionChecks(Contract):
    """What a partition's own checks found.

    ``empty`` names each source's columns without a value; ``classes`` maps each label value to
    the time at which the first of its labels was known.
    """

    checks: tuple[Check, ...]
    quarantined: int
    empty: dict[str, tuple[str, ...]]
    classes: dict[str, AwareDatetime]


def validate(
    declaration: Declaration,
    workspace: Workspace,
    snapshot: Snapshot,
    champion_snapshot: Snapshot | None = None,
) -> ValidationReport:
    """Check every partition of the snapshot, window and context, and the snapshot as a whole.

    To train, also the label files, where labels land in a table of their own. Those have no rows
    to set aside, and their columns are not compared with the champion's: what can't be joined is
    refused by `evergreen.lifecycle.labels`.

    :param champion_snapshot: what the champion learnt from; without one, columns are compared
        with the window's first partition.
    :raises DeclarationError: for a suite that can't be used.
    """
    store, suite = workspace.store, read_suite(declaration)
    rows = (*snapshot.context, *snapshot.partitions)
    every = (*rows, *(snapshot.labels if snapshot.purpose == "train" else ()))
    keys = {p.digest: _key(declaration, suite, snapshot, p) for p in every}
    found = {
        p.digest: _cached(store, keys[p.digest])
        or _examine(declaration, store, suite, p, purpose=snapshot.purpose, key=keys[p.digest])
        for p in every
    }
    aside = {
        digest: store.uri(_quarantine_name(keys[digest]))
        for digest in found
        if found[digest].quarantined
    }
    schema = tuple(_schema_checks(snapshot, champion_snapshot, found))
    classes = {digest: result.classes for digest, result in found.items()}
    checks = (
        *chain.from_iterable(found[p.digest].checks for p in every),
        *(_share_check(declaration, p, found[p.digest].quarantined) for p in rows),
        *schema,
        *(
            label_checks(declaration, store, snapshot, classes, aside)
            if snapshot.purpose == "train"
            else ()
        ),
    )
    blocked = {c.partition for c in checks if c.severity == "block" and not c.passed}
    return ValidationReport(
        model=declaration.name,
        snapshot=digest_of(snapshot.to_dict()),
        blocked=tuple(name for name in (*(p.name for p in every), WHOLE) if name in blocked),
        checks=checks,
        quarantined=aside,
        quarantined_rows=sum(result.quarantined for result in found.values()),
        schema_changes=tuple(
            f"{c.partition}: {c.name}: {c.observed}, was {c.bound}" for c in schema if not c.passed
        ),
        report=store.uri(_report_name(declaration, keys[rows[-1].digest]))
        if suite and rows
        else None,
    )


def _key(
    declaration: Declaration, suite: Suite | None, snapshot: Snapshot, partition: Partition
) -> str:
    """A digest of everything that a partition's own checks depend on."""
    data = declaration.data
    return digest_of(
        [
            CHECKS_VERSION,
            declaration.name,
            [suite.digest, version("great-expectations")] if suite else None,
            snapshot.purpose,
            declaration.task,
            data.model_dump(
                mode="json", include={"timezone", "event_timestamp", "entities", "label"}
            ),
            {name: source.event_timestamp for name, source in data.sources.items()},
            partition.key,
            partition.revision,
            partition.digest,
        ]
    )


def _checks_name(key: str) -> str:
    return f"documents/checks/{key}.json"


def _quarantine_name(key: str) -> str:
    return f"tables/quarantine/{key}.parquet"


def _report_name(declaration: Declaration, key: str, page: str = "index.html") -> str:
    return f"reports/{declaration.name}/{key}/{page}"


def _cached(store: Store, key: str) -> PartitionChecks | None:
    try:
        return PartitionChecks.model_validate_json(store.read_bytes(_checks_name(key)))
    except FileNotFoundError:
        return None


def _examine(
    declaration: Declaration,
    store: Store,
    suite: Suite | None,
    partition: Partition,
    *,
    purpose: str,
    key: str,
) -> PartitionChecks:
    """Run a partition's own checks. What the result points to is written before it."""
    skipped = _label_columns(declaration) if purpose == "score" else frozenset()
    built = build_suite(suite) if suite else []
    built = [pair for pair in built if skipped.isdisjoint(pair[0].columns)]
    checks: list[Check] = []
    pages: dict[str, str] = {}
    empty: dict[str, tuple[str, ...]] = {}
    classes: dict[str, AwareDatetime] = {}
    quarantined = 0
    for source in (MAIN, *declaration.data.sources) if partition.source == MAIN else (LABELS,):
        frame = _read(declaration, store, partition, source)
        if isinstance(frame, Finding):
            checks.append(_check(partition, source, frame))
            continue
        outcome = run_suite(built, source, frame, f"{partition.key}/{partition.revision}")
        findings = [*structural_findings(declaration, source, frame, skipped), *outcome.findings]
        if source == MAIN:
            aside = _set_aside(findings)
            quarantined = len(aside)
            kept = frame.drop(index=aside["row_id"].tolist())
            classes = _classes(declaration, kept)
            if labels_apart(declaration):
                findings += _label_keys(declaration, kept, purpose)
            if quarantined:
                store.put_table(_quarantine_name(key), aside)
        else:
            findings = [_without_quarantine(finding) for finding in findings]
        checks += [_check(partition, source, finding) for finding in findings]
        empty[source] = tuple(frame.columns[frame.isna().all()])
        pages.update(outcome.pages)
    result = PartitionChecks(
        checks=tuple(checks), quarantined=quarantined, empty=empty, classes=classes
    )
    if suite:
        pages["index.html"] = _index(declaration, partition, result, list(pages))
    for page, html in pages.items():
        store.put_bytes(_report_name(declaration, key, page), html.encode())
    store.put_bytes(_checks_name(key), result.model_dump_json(indent=1).encode())
    return result


def _label_columns(declaration: Declaration) -> frozenset[str]:
    """The columns of the model's own table that hold its labels."""
    label = declaration.data.label
    if labels_apart(declaration):
        return frozenset()
    return frozenset((label.column, *([label.timestamp] if label.timestamp else [])))


def _read(
    declaration: Declaration, store: Store, partition: Partition, source: str
) -> pd.DataFrame | Finding:
    """A source's rows; or, where there are none to be had, that finding."""
    file = partition.files.get(source)
    if file is None:
        return Finding("file", "block", False, "none", "one for each declared source")
    try:
        if set(time_columns(declaration, source)) <= set(file.columns):
            return read_raw(store, declaration, file, source)
        return read_file(store.path(file.stored), file.uri)
    except PartitionError as error:
        return Finding("file", "block", False, str(error), "readable, with times that are times")


def _set_aside(findings: list[Finding]) -> pd.DataFrame:
    """The rows to quarantine, each once, with every reason."""
    import pandas as pd

    reasons: dict[int, list[str]] = {}
    for finding in findings:
        for row in finding.rows:
            reasons.setdefault(row, []).append(finding.name)
    rows = sorted(reasons)
    return pd.DataFrame(
        {"row_id": pd.Series(rows, dtype="int64"), "reason": ["; ".join(reasons[r]) for r in rows]}
    )


def _without_quarantine(finding: Finding) -> Finding:
    """A further source's rows are no rows of the model's: there is nothing to set aside."""
    if finding.severity != "quarantine":
        return finding
    note = "" if finding.passed else "; this source's rows can't be set aside, so this blocks"
    return replace(finding, severity="block", observed=finding.observed + note, rows=())


def _label_keys(declaration: Declaration, kept: pd.DataFrame, purpose: str) -> Iterator[Finding]:
    """A doubled key makes training wrong; a prediction is what it is, so there it is said."""
    for finding in label_key_findings(declaration, kept):
        yield replace(finding, severity="warn") if purpose == "score" else finding


def _classes(declaration: Declaration, frame: pd.DataFrame) -> dict[str, AwareDatetime]:
    """Each label value and when it was first known; a thousand are enough to see what is wrong."""
    label = declaration.data.label.column
    absent = set(required_columns(declaration, MAIN)) - set(frame)
    if labels_apart(declaration) or not declaration.task.classifies or absent:
        return {}
    first = label_timestamps(declaration, frame).groupby(frame[label]).min().dropna()
    first = first.sort_values(kind="stable").head(1000)
    return {plain(value): moment.to_pydatetime() for value, moment in first.items()}


def _check(partition: Partition, source: str, finding: Finding) -> Check:
    return Check(
        name=f"{source}: {finding.name}",
        partition=partition.name,
        severity=finding.severity,
        passed=finding.passed,
        observed=finding.observed,
        bound=finding.bound,
    )


def _share_check(declaration: Declaration, partition: Partition, quarantined: int) -> Check:
    limit = declaration.validation.quarantine_at_most
    return Check(
        name="quarantined share",
        partition=partition.key,
        severity="block",
        passed=quarantined <= limit * partition.rows,
        observed=share(quarantined, partition.rows),
        bound=f"at most {100 * limit:g} %",
    )


def _schema_checks(
    snapshot: Snapshot, champion: Snapshot | None, found: Mapping[str, PartitionChecks]
) -> Iterator[Check]:
    """Each window partition's columns beside the champion's, or the window's first partition's."""
    expected = champion.columns if champion else None
    for partition in snapshot.partitions:
        columns = {name: file.columns for name, file in partition.files.items()}
        expected = expected or columns
        for source in sorted(expected.keys() | columns.keys()):
            guessed = source in columns and partition.files[source].uri.endswith(".csv")
            empty = found[partition.digest].empty.get(source, ())
            changes = list(
                _changes(expected.get(source, {}), columns.get(source, {}), empty, guessed)
            )
            for severity, name, now, was in changes or [("block", "columns", "as before", "same")]:
                yield Check(
                    name=f"{source}: {name}",
                    partition=partition.key,
                    severity=severity,
                    passed=not changes,
                    observed=now,
                    bound=was,
                )


def _changes(
    expected: Mapping[str, str], now: Mapping[str, str], empty: tuple[str, ...], guessed: bool
) -> Iterator[tuple[Severity, str, str, str]]:
    """Severity, column, type now, type before. A column that isn't there has type "missing"."""
    for column in sorted(expected.keys() | now.keys()):
        was, is_now = expected.get(column, "missing"), now.get(column, "missing")
        if was == is_now:
            continue
        readable = was == "missing" or column in empty or _compatible(was, is_now, guessed)
        severity: Severity = "warn" if is_now != "missing" and readable else "block"
        yield severity, f"column {column}", is_now, was


def _compatible(was: str, is_now: str, guessed: bool) -> bool:
    """Whether values of one type read as the other: the same kind in another width, whole numbers
    among fractions, no values at all. A CSV's types are guessed from its values, so that there a
    month without a gap turns fractions into whole numbers."""
    kinds = {"double": "float", "halffloat": "float", "uint": "int", "large_string": "string"}
    before, after = (
        kinds.get(stem, stem) for stem in (re.split(r"[\d\[(<]", kind)[0] for kind in (was, is_now))
    )
    allowed = {("int", "float"), *([("float", "int")] if guessed else [])}
    return before == after or "null" in (before, after) or (before, after) in allowed


def _index(
    declaration: Declaration, partition: Partition, result: PartitionChecks, pages: list[str]
) -> str:
    """One page for a person: every check of the partition, and the way to GX's own pages."""
    title = escape(f"{declaration.name}: data of {partition}")
    links = "".join(
        f'<li><a href="{escape(page)}">{escape(page)}</a></li>' for page in sorted(pages)
    )
    cells = (
        (c.name, "pass" if c.passed else f"FAIL ({c.severity})", c.observed, c.bound)
        for c in result.checks
    )
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in cells
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        "<style>body{font:15px system-ui;margin:2em}td,th{text-align:left;padding:.2em 1em .2em 0}</style>"
        f"<h1>{title}</h1><p>{share(result.quarantined, partition.rows)} quarantined.</p>"
        f"<table><tr><th>check<th>result<th>found<th>allowed</tr>{rows}</table>"
        f"<h2>Great Expectations</h2><ul>{links}</ul></html>"
    )
