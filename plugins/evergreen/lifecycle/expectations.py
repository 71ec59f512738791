"""Run a model's Great Expectations suite over one partition, and say what was found in words.

The suite file is GX's own format. In an entry's ``meta`` stand the two things GX doesn't know:
``on_failure`` (``block``, which is the default, ``warn`` or ``quarantine``) and ``source`` (a
declared source, ``labels`` where these land in a table of their own; the model's own table by
default). Expectations run one at a time: as fast as
together (measured), and one that raises can be named.

Longer than most: everything that knows GX's classes is here, so that nothing else has to.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError
from evergreen.lifecycle.rows import LABELS, MAIN, labels_apart
from evergreen.store import digest_of

if TYPE_CHECKING:
    import pandas as pd

Severity = Literal["block", "warn", "quarantine"]
_COLUMNS = ("column", "column_A", "column_B", "column_list")
_OURS = ("batch_id", "result_format", "catch_exceptions")
"""Arguments of a run, which a suite has no say in."""
_KEYS = ("type", "kwargs", "meta", "id", "severity", "notes", "description", "rendered_content")
_RANDOM = re.compile(r"(?<=/logo-long\.png)\?d=[\w.]+|(?<=-collapse-body-)[0-9a-f-]{36}")
_NULLS = ("nan", "None", "NaT", "<NA>")


@dataclass(frozen=True)
class Finding:
    """What one check found beside what is allowed, and the rows it sets aside."""

    name: str
    severity: Severity
    passed: bool
    observed: str
    bound: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One expectation of the suite file. ``number`` counts from 1."""

    number: int
    type: str
    kwargs: Mapping[str, Any]
    meta: Mapping[str, Any]
    on_failure: Severity
    source: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it looks at; none for a whole table."""
        named = (self.kwargs.get(key, ()) for key in _COLUMNS)
        return tuple(c for value in named for c in ([value] if isinstance(value, str) else value))


@dataclass(frozen=True)
class Suite:
    """A suite file as it was read."""

    file: Path
    digest: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Outcome:
    """What a suite found in one source's rows, and its Data Docs pages: path → HTML."""

    findings: tuple[Finding, ...] = ()
    pages: Mapping[str, str] = field(default_factory=dict)


def share(count: int, of: int) -> str:
    """
    >>> share(3, 26951)
    '3 of 26,951 rows (0.01 %)'
    """
    percent = 100 * count / max(of, 1)
    return f"{count:,} of {of:,} rows ({'<0.01' if 0 < percent < 0.005 else f'{percent:.2f}'} %)"


def read_suite(declaration: Declaration) -> Suite | None:
    """Read the declared suite without importing GX; None when none is declared.

    :raises DeclarationError: naming the file, the entry, what was found and what is allowed.
    """
    if declaration.validation.suite is None:
        return None
    file = declaration.folder / declaration.validation.suite
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DeclarationError(
            f"{file}: no such file, though validation.suite names it. Write it, or drop the key."
        ) from None
    except ValueError as error:
        raise DeclarationError(f"{file}: not JSON: {error}") from error
    listed = content.get("expectations") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise DeclarationError(
            f"{file}: found no list of expectations; "
            'allowed: {"name": ..., "expectations": [{"type": ..., "kwargs": ...}, ...]}'
        )
    apart = labels_apart(declaration)
    sources = (MAIN, *declaration.data.sources, *((LABELS,) if apart else ()))
    entries = tuple(_entry(file, i, raw, sources) for i, raw in enumerate(listed, start=1))
    label = declaration.data.label.column
    for entry in entries if apart else ():
        if entry.source == MAIN and label in entry.columns:
            found = f"{entry.type} looks for {label} in the model's own table"
            allowed = f'"meta": {{"source": "{LABELS}"}}, for it lands in a table of its own'
            raise _wrong(file, entry.number, found, allowed)
    return Suite(file, digest_of(content), entries)


def build_suite(suite: Suite) -> list[tuple[Entry, Any]]:
    """Every entry with its GX expectation.

    :raises DeclarationError: for a type or argument that GX doesn't know.
    """
    gx = _great_expectations()
    from great_expectations.expectations import registry

    built = []
    for entry in suite.entries:
        try:
            kind = registry.get_expectation_impl(entry.type)
            built.append((entry, kind(**entry.kwargs, meta=dict(entry.meta))))
        except gx.exceptions.ExpectationNotFoundError:
            known = ", ".join(sorted(registry.list_registered_expectation_implementations()))
            raise _wrong(suite.file, entry.number, f"found type {entry.type!r}", known) from None
        except (TypeError, ValueError) as error:
            raise _wrong(
                suite.file,
                entry.number,
                f"{entry.type} can't be made: {error}",
                "the arguments that Great Expectations documents for it",
            ) from error
    return built


def run_suite(
    built: Iterable[tuple[Entry, Any]], source: str, frame: pd.DataFrame, folder: str
) -> Outcome:
    """Run a source's expectations over its rows.

    :param built: from `build_suite`; other sources' entries are passed over.
    :param frame: the rows; the index is the row id.
    :param folder: two names joined by a slash that tell this batch apart on its page.
    """
    mine = [(entry, expectation) for entry, expectation in built if entry.source == source]
    if not mine:
        return Outcome()
    validator = _validator(source, frame)
    findings, results = [], []
    for entry, expectation in mine:
        by_row = _looks_at_rows(expectation)
        listing = entry.on_failure == "quarantine" and by_row
        validator.result_format = "COMPLETE" if listing else "SUMMARY"
        result = _validate(validator, expectation)
        findings.append(_finding(entry, by_row, result))
        for long in ("unexpected_list", "unexpected_index_list", "unexpected_index_query"):
            result.result.pop(long, None)
        results.append(result)
    return Outcome(tuple(findings), dict(_pages(source, mine, results, folder)))


def _entry(file: Path, number: int, raw: Any, sources: tuple[str, ...]) -> Entry:
    if not isinstance(raw, dict) or not isinstance(raw.get("type"), str):
        raise _wrong(file, number, f"found {str(raw)[:80]!r}", "an object with type and kwargs")
    if strange := sorted(raw.keys() - set(_KEYS)):
        raise _wrong(file, number, f"found the key {strange[0]!r}", ", ".join(_KEYS))
    kwargs, meta = raw.get("kwargs", {}), raw.get("meta") or {}
    if not isinstance(kwargs, dict) or not isinstance(meta, dict):
        raise _wrong(file, number, "found kwargs or meta that are no objects", "objects")
    on_failure, source = meta.get("on_failure", "block"), meta.get("source", MAIN)
    severities = get_args(Severity)
    if on_failure not in severities:
        raise _wrong(file, number, f"found on_failure {on_failure!r}", ", ".join(severities))
    if source not in sources:
        raise _wrong(file, number, f"found source {source!r}", ", ".join(sources))
    kwargs = {key: value for key, value in kwargs.items() if key not in _OURS}
    return Entry(number, raw["type"], kwargs, meta, on_failure, source)


def _wrong(file: Path, number: int, found: str, allowed: str) -> DeclarationError:
    return DeclarationError(f"{file}: expectation {number}: {found}; allowed: {allowed}")


def _great_expectations() -> Any:
    """GX, silent: it registers hundreds of functions aloud, and older ones phone home."""
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    for key, value in {"DO_NOT_TRACK": "true", "GX_ANALYTICS_ENABLED": "false"}.items():
        os.environ.setdefault(key, value)
    import great_expectations

    return great_expectations


def _validator(source: str, frame: pd.DataFrame) -> Any:
    """GX's validator of the rows, in a context of its own: in memory, no folder, no progress bars.

    One for all expectations: a batch that is asked makes one, and hashes the rows, for each anew.
    """
    gx = _great_expectations()
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )
    from great_expectations.validator.v1_validator import Validator

    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )
    context = gx.get_context(mode="ephemeral", project_config=config)
    asset = context.data_sources.add_pandas("evergreen").add_dataframe_asset(source)
    definition = asset.add_batch_definition_whole_dataframe("partition")
    return Validator(definition, batch_parameters={"dataframe": frame})


def _validate(validator: Any, expectation: Any) -> Any:
    """GX's result. What GX lets through as an exception becomes a failed one with its message."""
    from great_expectations.core import ExpectationValidationResult

    try:
        return validator.validate_expectation(expectation)
    except Exception as error:  # noqa: BLE001 - whatever it is, the expectation wasn't met
        raised = {"raised_exception": True, "exception_message": f"{type(error).__name__}: {error}"}
        return ExpectationValidationResult(
            success=False,
            exception_info={**raised, "exception_traceback": ""},
            expectation_config=expectation.configuration,
        )


def _looks_at_rows(expectation: Any) -> bool:
    from great_expectations.expectations.expectation import (
        ColumnMapExpectation,
        ColumnPairMapExpectation,
        MulticolumnMapExpectation,
    )

    return isinstance(
        expectation, ColumnMapExpectation | ColumnPairMapExpectation | MulticolumnMapExpectation
    )


def _finding(entry: Entry, by_row: bool, result: Any) -> Finding:
    limits = [f"{k} {v}" for k, v in entry.kwargs.items() if k not in (*_COLUMNS, "mostly")]
    if by_row:
        limits.append(f"at most {100 * (1 - entry.kwargs.get('mostly', 1)):g} % of rows otherwise")
    name = entry.type + (f"({', '.join(entry.columns)})" if entry.columns else "")
    draft = Finding(name, entry.on_failure, bool(result.success), "", ", ".join(limits) or "true")
    if problem := _exception(result.exception_info):
        severity: Severity = "warn" if entry.on_failure == "warn" else "block"
        return replace(draft, severity=severity, observed=f"could not be checked: {problem}")
    if not by_row:
        observed = _shown(result.result.get("observed_value"))
        if entry.on_failure == "quarantine":
            note = "" if draft.passed else "; no rows to set aside, so this blocks"
            return replace(draft, severity="block", observed=observed + note)
        return replace(draft, observed=observed)
    found = result.result
    count = found["unexpected_count"]
    observed = share(count, found["element_count"] - found.get("missing_count", 0))
    examples = dict.fromkeys(_shown(value) for value in found.get("partial_unexpected_list", ()))
    if some := [example for example in examples if example not in _NULLS][:3]:
        observed += f", such as {', '.join(some)}"
    rows = tuple(int(row) for row in found.get("unexpected_index_list") or ())
    return replace(draft, observed=observed, rows=rows)


def _exception(info: Mapping[str, Any]) -> str:
    """The message of what was raised; GX files it flat, or under the metric that failed."""
    raised = [info] if "raised_exception" in info else list(info.values())
    return "; ".join(
        dict.fromkeys(str(i["exception_message"]).strip() for i in raised if i["raised_exception"])
    )


def _shown(value: Any) -> str:
    if isinstance(value, tuple | dict):
        parts = value.values() if isinstance(value, dict) else value
        return f"({', '.join(_shown(part) for part in parts)})"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:,.6g}" if is_number else str(value)[:120]


def _pages(
    source: str, mine: list[tuple[Entry, Any]], results: list[Any], folder: str
) -> Iterator[tuple[str, str]]:
    """Two of Data Docs' pages: results and suite. The whole site is 4 MB of fonts and twenty
    times slower; paths are the site's, so that links between pages hold."""
    from great_expectations.core import ExpectationSuite, ExpectationSuiteValidationResult
    from great_expectations.core.expectation_validation_result import (
        expectationSuiteValidationResultSchema,
    )
    from great_expectations.render.renderer.page_renderer import (
        ExpectationSuitePageRenderer,
        ValidationResultsPageRenderer,
    )

    met = sum(bool(result.success) for result in results)
    counts = {
        "evaluated_expectations": len(results),
        "successful_expectations": met,
        "unsuccessful_expectations": len(results) - met,
        "success_percent": 100 * met / len(results),
    }
    whole = ExpectationSuiteValidationResult(
        success=met == len(results),
        results=results,
        suite_name=source,
        statistics=counts,
        meta={"run_id": {"run_name": folder}, "batch_spec": {"data_asset_name": source}},
    )
    # Through JSON, as GX's own store would: its renderer chokes on numpy's numbers.
    plain = expectationSuiteValidationResultSchema.loads(json.dumps(whole.to_json_dict()))
    suite = ExpectationSuite(name=source, expectations=[expectation for _, expectation in mine])
    view = _view()
    for path, renderer, content in (
        (f"validations/{source}/{folder}/index.html", ValidationResultsPageRenderer(), plain),
        (f"expectations/{source}.html", ExpectationSuitePageRenderer(), suite),
    ):
        yield path, _steady(view.render(renderer.render(content), show_how_to_buttons=False))


@cache
def _view() -> Any:
    """What fills in GX's templates; one, for each compiles all of them anew."""
    from great_expectations.render.view.view import DefaultJinjaPageView

    return DefaultJinjaPageView()


def compile_templates() -> None:
    """Compile the templates of GX's pages, for this process and those that are forked from it."""
    _great_expectations()
    templates = _view().env
    for name in templates.list_templates(extensions=["j2", "css"]):
        templates.get_template(name)


def _steady(page: str) -> str:
    """A page that is the same each time: no clock in its logo's address, no random anchors."""
    anchors: dict[str, str] = {}
    return _RANDOM.sub(
        lambda m: "" if m[0].startswith("?") else anchors.setdefault(m[0], str(len(anchors))), page
    )
